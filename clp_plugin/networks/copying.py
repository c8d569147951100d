"""Copies of networks, with all their numbers or with shapes only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copy_of(model: AnyModule) -> AnyModule:
    """A deep copy, also of modules that keep a tensor which an earlier run computed.

    ``copy.deepcopy`` refuses those: the effective weights that ``torch.nn.utils.prune``, ``weight_norm`` and
    ``spectral_norm`` leave on the module.
    """
    with _TensorsCopied(lambda tensor: tensor.detach().clone(), only=lambda tensor: not tensor.is_leaf):
        return _deep_copy(model)


def shapes_of(model: AnyModule) -> AnyModule:
    """A deep copy whose tensors live on the meta device: shapes, types and strides without numbers and memory."""
    with _TensorsCopied(lambda tensor: torch.empty_like(tensor, device="meta"), only=lambda _: True):
        return _deep_copy(model)


def _deep_copy(model: AnyModule) -> AnyModule:
    """A deep copy that shares attributes which cannot be copied, such as locks and open files."""
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever an attribute of somebody's module raises
        attributes = (item for module in model.modules() for item in vars(module).items())
        shared = {
            id(value): value for name, value in attributes if name not in _MODULE_ATTRIBUTES and not _copies(value)
        }
        return copy.deepcopy(model, shared)


def _copies(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # as above
        return False
    return True


class _TensorsCopied(TorchFunctionMode):
    """Inside, deep copies of the chosen tensors are made by ``make``."""

    def __init__(self, make: Callable[[Tensor], Tensor], *, only: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._make, self._only = make, only

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == Tensor.clone and self._only(args[0]):  # how nn.Parameter copies its data
            return self._make(args[0])
        if func == Tensor.__deepcopy__ and self._only(args[0]):
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._make(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
