"""Hooks and modes that hold for a block and are gone after it, whatever happens inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks for the length of a block.

    Args:
        handles: The handles that registering returned. A generator that registers them is best: should one of them
            fail, those before it are removed all the same.
    """
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every module has its own flag again after it.

    In training mode some modules change with every use (spectral_norm, BatchNorm).
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
