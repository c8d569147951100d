"""Which modules are convolutions, and which are BatchNorms that are fixed linear maps."""

from __future__ import annotations

import torch
from torch import nn

CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_batchnorm(module: nn.Module) -> bool:
    """A BatchNorm with running statistics, that is, a fixed linear map in eval mode (FrozenBatchNorm2d included)."""
    looks = isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module).__name__.startswith("FrozenBatchNorm")
    return looks and isinstance(getattr(module, "running_var", None), torch.Tensor)
