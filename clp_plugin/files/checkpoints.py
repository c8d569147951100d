"""Weights within checkpoints: the likeliest state dict of a file, and how weights are written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import write_atomically
from clp_plugin.files.marks import marked_safetensors, marked_zip
from clp_plugin.files.torch_files import read_pickle_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def load_checkpoint(path: Path, *, key: str | None = None, trust: bool = False) -> dict[str, Any]:
    """The weights in a checkpoint file, on the CPU, under the keys and in the precision that they were stored in.

    Args:
        path: A file of torch.save or safetensors.
        key: Dotted path to the weights within it; the likeliest ones if not given.
        trust: Allow pickles that run code.

    Raises:
        CheckpointError: If the file cannot be read (see :func:`read_pickle_checkpoint`), or holds no state dict.
    """
    from clp_plugin.files.containers import parts_of

    path = Path(path)
    return parts_of(read_pickle_checkpoint(path, trust=trust), path, key=key)[0].weights


def save_weights(state_dict: Mapping[str, Tensor], path: Path, *, marked: bool = False) -> None:
    """Write a state dict in one step; tensors that share memory are stored as copies.

    Args:
        state_dict: Parameter name to tensor, on any device.
        path: Ends in ``.safetensors``, or in ``.pt`` or ``.pth`` for torch.save.
        marked: Say in the file that this package wrote it, so that it may be replaced under a name that a user gives.

    Raises:
        ConfigError: If the suffix is another one, or the file cannot be written.
    """
    path = Path(path)
    require_weights_suffix(path)
    # A copy of each: safetensors refuses shared memory, and torch.save would store all that a view looks into.
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state_dict.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        content = save(tensors, metadata={"format": "pt"})
        write_atomically(path, marked_safetensors(content) if marked else lambda file: file.write(content))
    else:
        import torch

        plain = partial(torch.save, tensors)
        write_atomically(path, marked_zip(plain) if marked else plain)


def require_weights_suffix(path: Path) -> None:
    """Refuse a name that :func:`save_weights` does not know what to write to.

    Raises:
        ConfigError: If it ends in anything else than ``.safetensors``, ``.pt`` or ``.pth``.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ConfigError(f"cannot write weights to {path}: expected a name ending in .safetensors, .pt or .pth")
