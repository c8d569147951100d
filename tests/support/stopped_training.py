"""A training that is stopped in one of its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clp_plugin.adapters.builtin.training.hooks import Batch, BatchHook


class StoppedError(Exception):
    pass


class StopAfter(BatchHook):
    """Acts as another hook does for so many batches, then stops the training."""

    def __init__(self, batches: int, hook: BatchHook | None = None) -> None:
        self.left = batches
        self.hook = hook or BatchHook()

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        self.left -= 1
        if self.left < 0:
            raise StoppedError
        return self.hook(batch, indices, generator)

    def step(self, done: float) -> None:
        self.hook.step(done)

    def state(self) -> dict[str, Any]:
        return self.hook.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.hook.restore(state)
