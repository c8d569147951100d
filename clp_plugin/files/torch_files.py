"""The content of checkpoint files of strangers: plain containers of tensors, read without running anything."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from clp_plugin.errors import CheckpointError
from clp_plugin.files.pickles import foreign_globals, plain_containers_allowed

# torch names what it refused in the middle of a long text about its own options.
_REFUSED_TYPE = re.compile(r"but got <class '([\w.]+)'>")


def read_pickle_checkpoint(path: Path, *, trust: bool = False) -> object:
    """The object stored in a checkpoint file, on the CPU.

    Tensors, plain containers and numeric numpy arrays load; a file that names any other global is refused unread.

    Args:
        path: A file written by torch.save (any format), or ``.safetensors``.
        trust: Also run whatever the pickle asks for. Only for files whose content is known.

    Raises:
        CheckpointError: If the file is missing, empty, a folder, unreadable, damaged, or needs ``trust``.
    """
    path = Path(path)
    _require_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    import torch

    try:
        with plain_containers_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and storages, nothing a user can act on
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # torch, pickle and zip raise a dozen types on bad files
        raise CheckpointError(_explain(path, error, trust=trust)) from error


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a checkpoint file (.pt, .pth or .safetensors)")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise CheckpointError(f"{path} is empty (0 bytes); copy or download the checkpoint again")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except Exception as error:
        raise CheckpointError(_damaged(path, error)) from error


def _explain(path: Path, error: Exception, *, trust: bool) -> str:
    if trust:
        return f"{_damaged(path, error)}; if it holds pickled classes, the code that defines them must be importable"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript archive, which holds code; nothing was run. Read it first, then pass --trust"
    found = foreign_globals(path) or _REFUSED_TYPE.findall(str(error))
    if not found:
        return _damaged(path, error)
    others = ", ".join(found[1:4]) + ", ..." * (len(found) > 4)
    more = f" (and {len(found) - 1} more: {others})" if len(found) > 1 else ""
    return (
        f"{path} was not loaded, and nothing in it was run: its pickle asks for the global {found[0]}{more}; expected "
        "tensors, numbers and plain containers only. If you have read the file and know its source, pass --trust"
    )


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint: {first_line(error)}. Expected a whole "
        "file written by torch.save or safetensors; it may be truncated"
    )


def first_line(error: Exception) -> str:
    """What torch says of an error, without its advice."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
