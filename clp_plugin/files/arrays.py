"""Arrays of numbers from ``.npy`` and ``.npz`` files of strangers, never larger than what the file holds."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from clp_plugin.errors import ClpError
from clp_plugin.files.reading import open_regular

# Pictures of one colour shrink to a hundredth; a thousandth is made to fill a disk.
_LARGEST_RATIO, _ROOM = 100, 64 * 2**20
_NUMBERS = "buif"


def read_arrays(path: Path, *, raises: type[ClpError]) -> dict[str, NDArray[Any]]:
    """Read the arrays of an ``.npz``, or of an ``.npy``, whose array is called ``x``.

    Args:
        path: The file; what it is, its content says.
        raises: The error for a file that cannot be read.

    Returns:
        Name to array of booleans or numbers, in the file's own shape.

    Raises:
        ClpError: One of type ``raises``, if the file is no ordinary file, is damaged, holds anything but numbers, or
            declares more than it holds.
    """
    with open_regular(path, raises=raises) as opened:
        size = path.stat().st_size
        try:
            if not zipfile.is_zipfile(opened):
                opened.seek(0)
                return {"x": _array(opened, size)}
            with zipfile.ZipFile(opened) as archive:
                declared = sum(member.file_size for member in archive.infolist())
                if declared > _LARGEST_RATIO * size + _ROOM:
                    raise ValueError(f"{size} bytes that claim to unpack to {declared}")
                return {member.filename.removesuffix(".npy"): _member(archive, member) for member in archive.infolist()}
        except Exception as error:  # numpy and zipfile raise half a dozen types on damaged files
            raise raises(f"{path}: not a readable file of numpy arrays ({error}); copy it again") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as stream:
        return _array(stream, member.file_size)


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f"expected version 1.0 or 2.0 of the npy format, found {version}")
    shape, is_fortran, dtype = readers[version](stream)
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"expected numbers, found {dtype}")
    count = math.prod(shape) * dtype.itemsize
    held = size - stream.tell()
    if count != held:
        raise ValueError(f"shape {shape} of {dtype} needs {count} bytes, and {held} are there")
    content = bytearray(stream.read(count))
    if len(content) != count:
        raise ValueError(f"expected {count} bytes, found {len(content)}")
    return np.ndarray(shape, dtype, buffer=content, order="F" if is_fortran else "C")
