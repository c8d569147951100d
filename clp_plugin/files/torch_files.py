"""The content of checkpoint files of strangers: plain containers of tensors, read without running anything."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from clp_plugin.errors import CheckpointError
from clp_plugin.files.formats import foreign_format, form_of
from clp_plugin.files.pickled_classes import PickledClasses
from clp_plugin.files.pickles import ForeignGlobalsError, load_plain
from clp_plugin.files.plain_data import NotPlainError
from clp_plugin.files.reading import open_regular
from clp_plugin.files.torch_tensors import MemoryBudget, elements, fill, reserved, storage_id, torch_globals

if TYPE_CHECKING:
    from torch import Tensor

_TRUST = "If you have read the file and know its source, pass --trust"
_CLASSES = "classes that it holds must be importable, or stand in the file that --arch path/to/file.py:NAME names"
_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_COUNT_BYTES = 8
_LARGEST_HEADER = 16 << 20  # of safetensors: 100,000 names take 10 MiB


def read_pickle_checkpoint(path: Path, *, trust: bool = False, classes: PickledClasses | None = None) -> object:
    """The object stored in a checkpoint file, on the CPU.

    Dense tensors, plain containers and numeric numpy arrays load; a file that names any other global is refused, and
    nothing in it is run. Checksums are verified where the file has them.

    Args:
        path: A file written by torch.save (any format) or safetensors, whatever its suffix.
        trust: Let torch's own unpickling run whatever the pickle asks for. Only for files whose content is known.
        classes: Finder of classes that cannot be imported; with ``trust`` only.

    Raises:
        CheckpointError: If the file is missing, empty, no ordinary file, unreadable, damaged, declares more than it
            holds, or needs ``trust``.
    """
    path = Path(path)
    with open_regular(path, raises=CheckpointError, expected="a checkpoint file (.pt, .pth or .safetensors)") as file:
        size = file.seek(0, 2)
        if not size:
            raise CheckpointError(f"{path} is empty (0 bytes); copy or download the checkpoint again")
        try:
            if (what := foreign_format(file)) is not None:
                raise CheckpointError(f"this is {what}")
            return _read(path, file, classes=(classes or PickledClasses()) if trust else None)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except ForeignGlobalsError as error:
            raise CheckpointError(_foreign(path, error.names)) from error
        except NotPlainError as error:
            raise CheckpointError(f"{path} was not loaded: it {error}. {_TRUST}") from error
        except Exception as error:  # torch, pickle and zip raise a dozen types on bad files
            advice = f"; {_CLASSES}" if trust else ""
            raise CheckpointError(_damaged(path, size, error) + advice) from error


def read_torch_stream(file: IO[bytes]) -> object:
    """:func:`read_pickle_checkpoint` for a stream that can be read and wound back, never trusting.

    Raises:
        ForeignGlobalsError: If its pickle asks for more than plain data.
        Exception: Any other kind, if the stream is damaged.
    """
    size = file.seek(0, 2)
    file.seek(0)
    budget = MemoryBudget(size)
    start = file.read(len(_ZIP))
    file.seek(0)
    return _read_zip(file, budget) if start == _ZIP else _read_legacy(file, budget)


def first_line(error: Exception) -> str:
    """The first line of what torch says of an error, without its advice."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _read(path: Path, file: IO[bytes], *, classes: PickledClasses | None) -> object:
    """The content; with ``classes`` by torch's own unpickling, which runs what it is told to."""
    if form_of(file) == "safetensors":
        return _read_safetensors(path, file)
    if classes is None:
        return read_torch_stream(file)
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols and storages, nothing a user can act on
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=classes.pickle_module())


def _read_safetensors(path: Path, file: IO[bytes]) -> object:
    from safetensors.torch import load_file

    require_header(file)
    return load_file(path)


def require_header(file: IO[bytes]) -> None:
    """Refuse a safetensors file whose header, which is parsed as a whole, is larger than any that names tensors.

    Raises:
        ValueError: If it is; states its size.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > _LARGEST_HEADER:
        raise ValueError(f"declares a header of {size} bytes")


def _foreign(path: Path, names: list[str]) -> str:
    others = ", ".join(names[1:] if len(names) <= 4 else [*names[1:4], "..."])
    more = f" (and {len(names) - 1} more: {others})" if len(names) > 1 else ""
    return (
        f"{path} was not loaded, and nothing in it was run: its pickle asks for the global {names[0]}{more}; expected "
        f"dense tensors, numbers and plain containers only. {_TRUST}"
    )


def _damaged(path: Path, size: int, error: Exception) -> str:
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint: {first_line(error)}. Expected a whole file written by "
        "torch.save or safetensors; it may be truncated"
    )


def _read_zip(file: IO[bytes], budget: MemoryBudget) -> object:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in members:
            raise CheckpointError("a TorchScript archive holds code; nothing was run. Read it first, then pass --trust")
        if "data.pkl" not in members:
            raise ValueError("the zip archive holds no data.pkl")
        for info in members.values():
            budget.take(info.file_size)
            if not info.CRC:  # torch can be told to compute none
                del info.CRC
        _require_little_endian("byteorder" not in members or archive.read(members["byteorder"]) == b"little")
        storages: dict[str, Tensor] = {}

        def storage(identifier: object) -> Tensor:
            dtype, key, count = storage_id(identifier)
            if key not in storages:
                info = members[f"data/{key}"]
                storages[key] = reserved(info.file_size)
                with archive.open(info) as member:
                    fill(storages[key], member)
            return elements(storages[key], dtype, count)

        pickled = io.BytesIO(archive.read(members["data.pkl"]))
        return load_plain(pickled, globals_=torch_globals(budget), storage=storage)


def _read_legacy(file: IO[bytes], budget: MemoryBudget) -> object:
    """Five pickles in a row (magic number, protocol, system, the object, keys of storages), then the storages."""
    stream = io.BytesIO(file.read())
    if load_plain(stream) != _LEGACY_MAGIC or load_plain(stream) != _LEGACY_PROTOCOL:
        raise ValueError("it was not written by torch.save")
    system = load_plain(stream)
    _require_little_endian(not isinstance(system, dict) or system.get("little_endian") is not False)
    storages: dict[str, Tensor] = {}

    def storage(identifier: object) -> Tensor:
        dtype, key, count = storage_id(identifier)
        if key not in storages:
            budget.take(count * dtype.itemsize)
            storages[key] = reserved(count * dtype.itemsize)
        return elements(storages[key], dtype, count)

    content = load_plain(stream, globals_=torch_globals(budget), storage=storage)
    keys = load_plain(stream)
    if not isinstance(keys, list) or set(keys) != storages.keys() or len(keys) != len(storages):
        raise ValueError("its list of storages does not name those of its tensors")
    for key in keys:
        stream.seek(_COUNT_BYTES, io.SEEK_CUR)  # the number of elements, which the pickle has given
        fill(storages[key], stream)
    return content


def _require_little_endian(is_little: bool) -> None:
    if not is_little:
        raise ValueError("it was written on a big-endian machine; convert it there")
