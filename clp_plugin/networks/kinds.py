"""Telling convolutions, BatchNorms that are fixed linear maps, and which of them compute as usual."""

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


def smallest_input(module: nn.Module) -> tuple[int, ...]:
    """Shape, without the batch, of a small input that a convolution, linear map or BatchNorm can be tried on alone."""
    layer: Any = module
    if isinstance(module, nn.Linear):
        return (layer.in_features,)
    if isinstance(module, CONV_TYPES):
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        return (layer.in_channels, *(dilation * (size - 1) + 3 for dilation, size in sizes))
    positions = 3 if isinstance(module, nn.BatchNorm3d) else 0 if isinstance(module, nn.BatchNorm1d) else 2
    return (layer.running_var.numel(), *[1] * positions)
