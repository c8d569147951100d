"""The mark that tells weights that this package wrote from anybody else's, so that only the former are replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from clp_plugin.errors import ConfigError
from clp_plugin.files.places import file_to_write, refusals_told

_MARK, _SAID_BY = b"clp-plugin", "written_by"
_ZIP = b"PK\x03\x04"
_LONGEST_HEADER = 100 << 20  # bytes of a safetensors file: the format's own limit


def marked_safetensors(content: bytes) -> Callable[[BinaryIO], None]:
    """A writer of a safetensors file that has the mark in its header; equal contents give equal files.

    The library writes the texts of the header in an order of chance, and needs ``format`` to stay among them.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    texts = {**header.pop("__metadata__", {}), _SAID_BY: _MARK.decode()}
    told = json.dumps({"__metadata__": dict(sorted(texts.items())), **header}, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)  # the tensors start at a multiple of 8 bytes

    def write(file: BinaryIO) -> None:
        file.write(len(told).to_bytes(8, "little") + told)
        file.write(memoryview(content)[8 + length :])

    return write


def marked_zip(writer: Callable[[BinaryIO], object]) -> Callable[[BinaryIO], None]:
    """A writer whose zip file, as of torch.save and torch.jit.save, has the mark for its comment; others get none.

    A zip file ends with its comment, after two bytes of the comment's length, and everybody reads it with one or without.
    """

    def write(file: BinaryIO) -> None:
        writer(file)
        file.flush()
        with Path(file.name).open("rb") as written:
            if written.read(len(_ZIP)) != _ZIP:
                return
        file.seek(-2, os.SEEK_END)
        file.write(len(_MARK).to_bytes(2, "little") + _MARK)

    return write


def weights_to_write(path: Path) -> Path:
    """Like :func:`file_to_write`, for a name that a user gave: weights there are replaced only if they have the mark.

    Raises:
        ConfigError: If nothing can be written there, or a file without the mark lies there.
    """
    place = file_to_write(path)
    if place.exists() and not _has_mark(place):
        raise ConfigError(f"{path} is there already and was not written by this package; choose another name")
    return place


def _has_mark(path: Path) -> bool:
    with refusals_told(path), path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            file.seek(-len(_MARK), os.SEEK_END)
            return file.read() == _MARK
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        said = b'"%b":"%b"' % (_SAID_BY.encode(), _MARK)
        return length <= _LONGEST_HEADER and said in file.read(length)
