"""A hash by which a network is known again: its code by name, and all that it holds."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str | None:
    """Hash of a network's classes, tensors, settings and hooks.

    Args:
        network: Any network, on any device.

    Returns:
        64 hexadecimal digits, the same only for networks that compute the same; None for a network whose parts cannot all be
        written down, such as a hook that is a lambda.
    """
    digest = _Digest()
    try:
        _Writer(digest).dump(network)
    except Exception:  # whatever writing an attribute of somebody's module raises
        return None
    return digest.sha256.hexdigest()


class _Digest:
    """A file that only its hash is kept of."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> None:
        self.sha256.update(data)


class _Writer(pickle.Pickler):
    """Writes tensors by value: how torch writes them depends on where they lie in memory."""

    def reducer_override(self, part: Any) -> Any:
        if not isinstance(part, torch.Tensor):
            return NotImplemented
        numbers = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        layout = str((type(part), part.dtype, tuple(part.shape), part.stride(), part.device))
        return str, (f"{layout} {hashlib.sha256(numbers.data).hexdigest()}",)
