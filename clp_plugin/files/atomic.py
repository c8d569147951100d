"""Files and folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clp_plugin.files import places
from clp_plugin.files.locks import NEW, OLD, beside, claimed, claimed_inside

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def write_atomically(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Let ``writer`` fill a hidden file beside ``path``, then move it there in one step.

    A reader sees the old file or the new one, never half of it. Links are followed; missing folders are made.

    Args:
        path: The file to write.
        writer: Called with the hidden file, open for writing bytes.

    Raises:
        ConfigError: If the place cannot be written, holds something else than a file, or an input of this run.
    """
    place = places.file_to_write(path)
    temporary = beside(place, NEW)
    with places.refusals_told(path), claimed(place):
        places.step("write", temporary)
        disk = _Disk(temporary, "wb")
        try:
            with io.BufferedWriter(disk) as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            if disk.refusal is not None:
                raise disk.refusal from error
            raise
        places.step("replace", place)
        temporary.replace(place)
        _sync(place.parent)


class _Disk(io.FileIO):
    """A file that remembers what the disk refused, as torch raises a RuntimeError of its own instead."""

    refusal: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 in one step; what is left of a file name that is no text is written as ``\\udcff``."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json_atomically(path: Path, obj: object) -> None:
    """Write ``obj`` as JSON in one step; NaN and infinities become null, as JSON has no word for them."""
    write_text_atomically(path, json.dumps(finite(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(obj: object) -> object:
    """The same plain data with None in place of NaN and infinities, and lists in place of tuples."""
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [finite(value) for value in obj]
    return obj


def delete(path: Path) -> None:
    """Delete a file that this package wrote, if it is there.

    Raises:
        ConfigError: If it cannot be deleted.
    """
    places.step("delete", path)
    with places.refusals_told(path):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """A hidden folder beside ``destination`` to be filled; when the block ends well it takes that place in one step.

    A folder that stands there already is set aside first and deleted last; if the block fails, nothing has changed.
    Only one run at a time fills a folder for the same destination; another one waits, and says so.

    Args:
        destination: The folder to make or to replace. Links are followed; missing parents are made.

    Raises:
        ConfigError: If the place cannot be written, or holds something else than a folder, or an input of this run.
    """
    place = places.folder_to_replace(destination)
    staged = beside(place, NEW)
    with places.refusals_told(destination), claimed(place):
        places.step("stage", staged)
        staged.mkdir()
        yield staged
        if place.exists():
            places.step("set aside", place)
            place.rename(beside(place, OLD))
        places.step("put in place", place)
        staged.rename(place)
        _sync(place.parent)


@contextlib.contextmanager
def filled_folder(folder: Path) -> Iterator[Path]:
    """A folder into which files are written one by one; one run at a time, and what else is in it stays.

    Another run waits, and says so. A folder that gets no file is not made.

    Args:
        folder: There or not. Links are followed.

    Raises:
        ConfigError: If something else than a folder stands there, or it cannot be written.
    """
    with claimed_inside(places.folder_to_fill(folder)):
        yield folder


def _sync(folder: Path) -> None:
    """A new name survives a crash of the machine once its folder is on disk; not every system can promise that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
