"""Everything that a network holds, so that a test can say that nothing of it was changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fail if the block changes a number, a flag, a hook or an attribute of any module, also when it raises."""
    before = contents(model)
    try:
        yield
    finally:
        after = contents(model)
        assert after.keys() == before.keys()
        changed = [key for key in before if not _same(before[key], after[key])]
        assert not changed, changed


def contents(model: nn.Module) -> dict[str, object]:
    """Module and attribute to what stands there; tensors with a copy of their bits, under each name of a module."""
    found: dict[str, object] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for attribute, value in vars(module).items():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            for key, entry in entries:
                place = f"{name}.{attribute}.{key}"
                found[place] = (entry, _bits(entry)) if isinstance(entry, Tensor) else entry
    return found


def _bits(tensor: Tensor) -> tuple[object, ...]:
    kept = None if tensor.is_meta else tensor.detach().clone(memory_format=torch.preserve_format)
    return tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad, tensor.is_leaf, kept


def _same(before: object, after: object) -> bool:
    if not isinstance(before, tuple) or not before or not isinstance(before[0], Tensor):
        return before is after or before == after
    if not isinstance(after, tuple) or before[0] is not after[0]:
        return False
    (*facts, kept), (*facts_now, now) = before[1], after[1]
    return facts == facts_now and torch.equal(kept.nan_to_num(), now.nan_to_num())
