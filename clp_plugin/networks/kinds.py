"""Which modules are convolutions, which are BatchNorms that are fixed linear maps, and which of them compute as usual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_batchnorm(module: nn.Module) -> bool:
    """A BatchNorm with running statistics, that is, a fixed linear map in eval mode (FrozenBatchNorm2d included)."""
    looks = isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module).__name__.startswith("FrozenBatchNorm")
    return looks and isinstance(getattr(module, "running_var", None), Tensor)


def is_plain_batchnorm(module: nn.Module) -> bool:
    """Whether a BatchNorm computes what its class says, from parameters of its own: no subclass, hook or parametrization."""
    return (
        type(module) in _PLAIN_BATCHNORMS
        and "forward" not in module.__dict__
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and "weight" in module._parameters
        and "bias" in module._parameters
    )


def batchnorm_input(norm: nn.Module, values: Tensor) -> Tensor:
    """A batch of a BatchNorm's own number of dimensions with one position a channel.

    Args:
        norm: The module.
        values: ``(B,)``, the value of all channels of each entry, or ``(B, K)``.
    """
    parts: Any = norm
    channels = parts.running_var.numel()
    positions = 3 if isinstance(norm, nn.BatchNorm3d) else 0 if isinstance(norm, nn.BatchNorm1d) else 2
    filled = values if values.ndim > 1 else values[:, None].expand(-1, channels)
    return filled.reshape(len(values), channels, *[1] * positions)
