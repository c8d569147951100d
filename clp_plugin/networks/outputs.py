"""The logits in what a network returns, be it a tensor, a tuple, a dictionary or a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor

from clp_plugin.errors import PairingError

_NAMES = ("logits", "out")


def logits_of(output: object) -> Tensor:
    """The tensor that says the class.

    Args:
        output: The value that a network returned for a batch.

    Returns:
        The entry ``logits`` or ``out`` where entries have names; else the first matrix ``(B, classes)``; else the first
        tensor.

    Raises:
        PairingError: If there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    named = _entries(output)
    for name in _NAMES:
        if isinstance(value := named.get(name), Tensor):
            return value
    found = tensors_in(output)
    if not found:
        raise PairingError(
            f"expected a network that returns its logits, found one that returns {type(output).__name__}"
        )
    return next((tensor for tensor in found if tensor.ndim == 2), found[0])


def tensors_in(output: object) -> list[Tensor]:
    """All tensors of a network's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for value in _entries(output).values() for tensor in tensors_in(value)]


def _entries(output: object) -> dict[str, object]:
    """Name or position to entry; nothing for what is no container."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if is_dataclass(output) and not isinstance(output, type):
        return {part.name: getattr(output, part.name) for part in fields(output)}
    if isinstance(output, (list, tuple)):
        names = getattr(output, "_fields", None) or range(len(output))
        return dict(zip(map(str, names), output, strict=True))
    return {}
