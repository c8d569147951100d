"""The numbers of a linear layer: effective kernels and BatchNorm scales, read from the model when they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clp_plugin.errors import PairingError
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.kinds import CONV_TYPES

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN_FORWARDS = {kind.forward for kind in (*CONV_TYPES, nn.Linear)}


def kernel(module: nn.Module) -> Tensor:
    """The kernel that a convolution or linear map really uses, ``(K, C_in / groups, *kernel_size)``.

    Parametrized and weight-standardized modules compute their kernel in ``forward``: what reaches the convolution counts,
    not the stored parameter. A view of the parameter where that is the same thing.

    Args:
        module: A convolution (1-D to 3-D, transposed too) or ``nn.Linear`` (``(K, C_in)``).

    Raises:
        PairingError: If the module never calls a convolution.
    """
    plain = type(module).forward in _PLAIN_FORWARDS and not module._forward_pre_hooks
    weight = module.get_parameter("weight") if plain and "weight" in module._parameters else _used_weight(module)
    if isinstance(module, _TRANSPOSED):
        groups = module.groups
        grouped = weight.detach().reshape(groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1)
    return weight.detach()


def batchnorm_gain(norm: nn.Module, *, with_gamma: bool = True, with_eps: bool = True) -> Tensor:
    """|gamma_k| / sqrt(var_k + eps) of a BatchNorm in eval mode, ``(K,)`` float64 on the CPU.

    Args:
        norm: A BatchNorm with running statistics; without affine parameters gamma is 1.
        with_gamma: False gives 1 / sqrt(var_k + eps).
        with_eps: False reproduces the published code.
    """
    parts: Any = norm
    variance = parts.running_var.detach().double().cpu()
    gain: Tensor = (variance + (parts.eps if with_eps else 0.0)).rsqrt()
    if with_gamma and parts.weight is not None:
        gain = gain * parts.weight.detach().double().cpu().abs()
    return gain


class _WeightCatcher(TorchDispatchMode):
    weight: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution:
            self.weight = args[1]
        return func(*args, **(kwargs or {}))


def _used_weight(module: nn.Module) -> Tensor:
    used = copy_of(module).eval()  # a run may leave something behind: the weight of torch.nn.utils.prune, say
    stored = next(used.parameters())
    if isinstance(used, nn.Linear):
        with torch.no_grad():
            used(torch.zeros((1, used.in_features), dtype=stored.dtype, device=stored.device))
            weight: Tensor = used.weight
        return weight
    conv: Any = used
    size = [d * (k - 1) + 1 + 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    image = torch.zeros((1, conv.in_channels, *size), dtype=stored.dtype, device=stored.device)
    catcher = _WeightCatcher()  # type: ignore[no-untyped-call]
    with torch.no_grad(), catcher:
        used(image)
    if catcher.weight is None:
        raise PairingError(
            f"{type(module).__name__} is a convolution by its class but never calls one: cannot score it"
        )
    return catcher.weight
