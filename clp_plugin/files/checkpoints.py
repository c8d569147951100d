"""Read checkpoints of strangers without running them, and write files that are either whole or absent."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.files.atomic import staged_folder as staged_folder
from clp_plugin.files.atomic import write_atomically as write_atomically
from clp_plugin.files.atomic import write_json_atomically as write_json_atomically
from clp_plugin.files.atomic import write_text_atomically as write_text_atomically
from clp_plugin.files.pickles import foreign_globals
from clp_plugin.files.pickles import plain_containers_allowed as plain_containers_allowed

if TYPE_CHECKING:
    from torch import Tensor, nn

NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
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


def load_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, on the CPU, in the precision it was stored in.

    Looks under ``state_dict``, ``model_state_dict``, ``model`` and ``net``, and strips ``module.`` and
    ``_orig_mod.`` where every key has them. A whole pickled module gives its state dict (needs ``trust``).

    Raises:
        CheckpointError: As :func:`read_pickle_checkpoint`, or if the file holds no state dict.
    """
    path = Path(path)
    state_dict = _find_state_dict(read_pickle_checkpoint(path, trust=trust), path, depth=3)
    return strip_wrapper_prefixes({key: tensor.detach() for key, tensor in state_dict.items()})


def strip_wrapper_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel and torch.compile put in front of the keys, if all keys have it."""
    stripped = dict(state_dict)
    while prefix := next((p for p in WRAPPER_PREFIXES if stripped and all(k.startswith(p) for k in stripped)), ""):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def save_weights(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict in one step; tensors that share memory are stored as copies.

    Args:
        state_dict: Parameter name to tensor, on any device.
        path: Ends in ``.safetensors``, or in ``.pt`` or ``.pth`` for torch.save.

    Raises:
        ConfigError: If the suffix is another one, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ConfigError(f"cannot write weights to {path}: expected a name ending in .safetensors, .pt or .pth")
    # A copy of each: safetensors refuses shared memory, and torch.save would store all that a view looks into.
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state_dict.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata={"format": "pt"}))
    else:
        import torch

        write_atomically(path, lambda temporary: torch.save(tensors, temporary))


def fit_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], *, where: str) -> None:
    """Load weights into ``model`` in place, key by key, nothing left over.

    If all floating tensors share one dtype the model is converted to it, so that half precision stays half.

    Args:
        model: Changed in place.
        state_dict: Parameter name to tensor.
        where: File and architecture, for the message.

    Raises:
        CheckpointError: Names the first key that does not fit, with both shapes.
    """
    wanted = model.state_dict()
    # Checkpoints older than torch 0.4.1 have no counters; nothing here depends on them.
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    given = {**{key: value for key, value in counters.items() if key not in state_dict}, **state_dict}
    if misfit := _misfit(wanted, given):
        raise CheckpointError(f"{where}: {misfit}; check the architecture, its options and the number of classes")
    dtypes = {tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: {_first_line(error)}") from error


def _misfit(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The first key, in the order of the model, that is absent or of another shape; then keys that nobody wants."""
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted]
    reshaped = [key for key in wanted if key in given and _shape(wanted[key]) != _shape(given[key])]
    counts = f"in all {len(reshaped)} of another shape, {len(missing)} missing, {len(extra)} unexpected"
    unexpected = f"the checkpoint has {extra[0]!r} {_shape(given[extra[0]])}" if extra else ""
    first = next((key for key in wanted if key in missing or key in reshaped), None)
    if first in reshaped:
        shapes = f"{_shape(wanted[first])}, the checkpoint has {_shape(given[first])}"
        return f"weights do not fit: for {first!r} the architecture has {shapes} ({counts})"
    if first is not None:
        tail = f", {unexpected} instead" if extra else ""
        return f"weights do not fit: the architecture has {first!r} {_shape(wanted[first])}{tail} ({counts})"
    return f"weights do not fit: {unexpected}, which the architecture lacks ({counts})" if extra else ""


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


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
        f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint: {_first_line(error)}. Expected a whole "
        "file written by torch.save or safetensors; it may be truncated"
    )


def _first_line(error: Exception) -> str:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


def _find_state_dict(loaded: object, path: Path, *, depth: int) -> Mapping[str, Tensor]:
    from torch import Tensor, nn

    if isinstance(loaded, nn.Module):
        return loaded.state_dict()
    if isinstance(loaded, Mapping) and loaded:
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
            return loaded
        for key in NESTED_UNDER:
            if depth and isinstance(loaded.get(key), (Mapping, nn.Module)):
                return _find_state_dict(loaded[key], path, depth=depth - 1)
    held = f"keys {', '.join(map(str, list(loaded)[:8]))}" if isinstance(loaded, Mapping) else type(loaded).__name__
    raise CheckpointError(
        f"{path} holds no state dict: found {held or 'an empty dict'}; expected parameter names with tensors, "
        f"at the top or under {', '.join(NESTED_UNDER)}"
    )
