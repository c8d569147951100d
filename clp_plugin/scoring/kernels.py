"""The numbers of a linear layer: effective kernels and BatchNorm scales, read from the model when they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clp_plugin.errors import PairingError
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.kinds import CONV_TYPES, is_plain_batchnorm, smallest_input

aten = torch.ops.aten
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit_no_training)
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

    If a module computes its gain in ``forward``, its effect on its input counts, not the stored parameters.

    Args:
        norm: A BatchNorm with running statistics; without affine parameters gamma is 1.
        with_gamma: False gives 1 / sqrt(var_k + eps).
        with_eps: False reproduces the published code, which reads the stored parameters.

    Raises:
        PairingError: If the module is no fixed linear map and calls no batch norm.
    """
    parts: Any = norm
    variance = parts.running_var.detach().double().cpu()
    gain: Tensor = (variance + (parts.eps if with_eps else 0.0)).rsqrt()
    if not with_gamma:
        return gain
    if with_eps and not is_plain_batchnorm(norm):
        return _measured_gain(norm)
    return gain if parts.weight is None else gain * parts.weight.detach().double().cpu().abs()


def batchnorm_gamma(norm: nn.Module) -> Tensor:
    """|gamma_k| of a BatchNorm in eval mode, ``(K,)`` float64 on the CPU, as :func:`batchnorm_gain` sees it."""
    parts: Any = norm
    if not is_plain_batchnorm(norm):
        return batchnorm_gain(norm) / batchnorm_gain(norm, with_gamma=False)
    if parts.weight is None:
        return torch.ones(parts.running_var.numel(), dtype=torch.float64)
    gamma: Tensor = parts.weight.detach().double().cpu().abs()
    return gamma


class _ArgumentRecorder(TorchDispatchMode):
    """Keeps the arguments of the last call of one of these operations."""

    def __init__(self, *operations: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: tuple[Any, ...] | None = None
        self._operations = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self._operations:
            self.arguments = args
        return func(*args, **(kwargs or {}))


def _used_weight(module: nn.Module) -> Tensor:
    used: Any = copy_of(module).eval()  # a run may leave something behind: the weight of torch.nn.utils.prune, say
    recorder = (
        _ArgumentRecorder(aten.addmm, aten.mm) if isinstance(module, nn.Linear) else _ArgumentRecorder(aten.convolution)
    )
    stored = next(used.parameters())
    with torch.no_grad(), recorder:
        used(torch.zeros((1, *smallest_input(used)), dtype=stored.dtype, device=stored.device))
    if recorder.arguments is None:
        raise PairingError(
            f"{type(module).__name__} is a convolution or linear map by its class but never calls one: cannot score it"
        )
    weight: Tensor = recorder.arguments[-1].t() if isinstance(module, nn.Linear) else recorder.arguments[1]
    return weight


def _measured_gain(norm: nn.Module) -> Tensor:
    """|slope| of each channel; where the module ends in an activation, the gain of the batch norm that it calls."""
    used: Any = copy_of(norm).double().cpu().eval()
    levels, shape = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3], dtype=torch.float64), smallest_input(norm)
    recorder = _ArgumentRecorder(*_BATCH_NORMS)
    with torch.no_grad(), recorder:
        answers = used(levels.view(-1, *[1] * len(shape)).expand(-1, *shape)).flatten(1)
    slopes = answers.diff(dim=0) / levels.diff()[:, None]
    if bool(torch.allclose(slopes, slopes[:1].expand_as(slopes), rtol=1e-9, atol=1e-12, equal_nan=True)):
        measured: Tensor = slopes[-1].abs()
        return measured
    if recorder.arguments is None:
        raise PairingError(
            f"{type(norm).__name__} is a BatchNorm by its class but no fixed linear map: cannot score it"
        )
    _, weight, _, _, variance, *_, eps = recorder.arguments
    gain: Tensor = (variance + eps).rsqrt()
    return gain if weight is None else gain * weight.detach().abs()
