"""Weights within checkpoints: which state dict a file holds, whether it fits a network, and how weights are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.files.atomic import staged_folder as staged_folder
from clp_plugin.files.atomic import write_atomically as write_atomically
from clp_plugin.files.atomic import write_json_atomically as write_json_atomically
from clp_plugin.files.atomic import write_text_atomically as write_text_atomically
from clp_plugin.files.torch_files import first_line, read_pickle_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


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
        from safetensors.torch import save

        write_atomically(path, lambda file: file.write(save(tensors, metadata={"format": "pt"})))
    else:
        import torch

        write_atomically(path, lambda file: torch.save(tensors, file))


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
        raise CheckpointError(f"{where}: {first_line(error)}") from error


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
