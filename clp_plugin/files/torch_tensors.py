"""Tensors of strangers: dense, each inside its storage, together no larger than their file warrants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

from clp_plugin.files.plain_data import Maker

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
}  # fmt: skip


class MemoryBudget:
    """The memory that a file may fill: tensors that share storages are legitimate, terabytes from kilobytes are not."""

    def __init__(self, size: int) -> None:
        self.left = 8 * size + (16 << 20)

    def take(self, count: int) -> None:
        """Claim so many bytes.

        Raises:
            ValueError: If there are not so many left.
        """
        self.left -= count
        if self.left < 0:
            raise ValueError("declares more data than it holds")


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


def storage_id(identifier: object) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of ``("storage", type, key, device, count)``.

    The legacy format adds views, of which today's torch writes none.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(identifier, tuple) and len(identifier) in (5, 6) and identifier[5:] in ((), (None,)):
        _, kind, key, _, count = identifier[:5]
        if isinstance(kind, _StorageType) and isinstance(key, str) and type(count) is int and 0 <= count < 2**63:
            return kind.dtype, key, count
    raise ValueError("a reference to a storage is damaged")


def reserved(size: int) -> Tensor:
    """Memory for a storage of so many bytes, not yet filled."""
    import torch

    return torch.empty(size, dtype=torch.uint8)


def fill(raw: Tensor, source: IO[bytes]) -> None:
    """Read the bytes of a storage from where the source stands.

    Raises:
        ValueError: If it ends before.
    """
    content = source.read(raw.numel())
    if len(content) != raw.numel():
        raise ValueError(f"a storage of {raw.numel()} bytes ends after {len(content)}")
    raw.numpy()[:] = np.frombuffer(content, dtype=np.uint8)


def elements(raw: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    """The first elements of a storage ``(bytes,)``, as ``(count,)`` of this type.

    Raises:
        ValueError: If it does not hold so many.
    """
    if count * dtype.itemsize > raw.numel():
        raise ValueError(f"a storage of {raw.numel()} bytes is said to hold {count} elements of {dtype}")
    return raw[: count * dtype.itemsize].view(dtype)


def torch_globals(budget: MemoryBudget) -> dict[str, object]:
    """Substitutes for the globals of torch that dense tensors need."""
    import torch

    def tensor(flat: object, offset: object, size: object, stride: object, *rest: object) -> Tensor:
        if any(rest[2:]):
            raise ValueError("a tensor that is conjugated or negated when it is read is not supported")
        return _strided(flat, offset, size, stride, budget)

    def tensor_of_bytes(flat: Tensor, offset: object, size: object, stride: object, *rest: object) -> Tensor:
        return tensor(flat.view(rest[2]), offset, size, stride)  # type: ignore[call-overload]

    def of_type(function: object, _: object, arguments: tuple[object, ...], *__: object) -> object:
        if not isinstance(function, Maker):
            raise ValueError("a tensor is made by no function")
        return function.make(*arguments)

    storages = {
        f"{home}.{name}Storage": _StorageType(getattr(torch, dtype))
        for home in ("torch", "torch.cuda")
        for name, dtype in _STORAGES.items()
    }
    return {
        **storages,
        **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
        "torch.storage.UntypedStorage": _StorageType(torch.uint8),
        "torch.Size": Maker(torch.Size),
        "torch.device": Maker(torch.device),
        "torch.Tensor": "torch.Tensor",
        "torch.nn.parameter.Parameter": "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_tensor": Maker(tensor),
        "torch._utils._rebuild_tensor_v2": Maker(tensor),
        "torch._utils._rebuild_tensor_v3": Maker(tensor_of_bytes),
        "torch._utils._rebuild_parameter": Maker(lambda data, grad, *_: torch.nn.Parameter(data, bool(grad))),
        "torch._utils._rebuild_parameter_with_state": Maker(
            lambda data, grad, *_: torch.nn.Parameter(data, bool(grad))
        ),
        "torch._tensor._rebuild_from_type_v2": Maker(of_type),
    }


def _strided(flat: object, offset: object, size: object, stride: object, budget: MemoryBudget) -> Tensor:
    """A view into a storage, none of whose elements lie outside of it."""
    import torch

    if not (
        isinstance(flat, torch.Tensor)
        and isinstance(size, tuple)
        and isinstance(stride, tuple)
        and len(size) == len(stride) <= 64
        and type(offset) is int
        and all(type(number) is int and 0 <= number < 2**63 for number in (offset, *size, *stride))
    ):
        raise ValueError("the shape of a tensor is damaged")
    count = math.prod(size)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if count and last >= flat.numel():
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage of {flat.numel()} elements")
    budget.take(count * flat.itemsize)
    return flat.as_strided(size, stride, offset)
