"""The place in the training where attacks that act during it come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A training batch after crop and flip.

    Attributes:
        images: ``(B, C, H, W)`` on the training device, in 0 to 255: uint8, or float32 with a graph behind it.
        labels: ``(B,)`` int64 on the training device, the labels to learn.
        penalty: Added to the classifier's loss.
    """

    images: Tensor
    labels: Tensor
    penalty: Tensor | None = None

    def penalised(self, penalty: Tensor) -> Batch:
        """The batch with one more penalty."""
        return replace(self, penalty=penalty if self.penalty is None else self.penalty + penalty)


class BatchHook:
    """Changes training batches; this one changes nothing."""

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        """Called before the forward pass.

        Args:
            batch: The images and labels that would be trained on.
            indices: ``(B,)`` positions in the training set, on the CPU.
            generator: Source of all random draws, on the CPU: a resumed run draws the same.
        """
        del indices, generator
        return batch

    def step(self, done: float) -> None:
        """Called after the backward pass and the classifier's own step; ``done`` is the share of the training, in [0, 1)."""

    def state(self) -> dict[str, Any]:
        """The state that :meth:`restore` needs to go on: tensors and plain containers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where :meth:`state` was taken."""


class HooksInTurn(BatchHook):
    """Several hooks, each of which changes what the one before it made.

    Attributes:
        hooks: The hooks in their order.
    """

    def __init__(self, hooks: Sequence[BatchHook]) -> None:
        self.hooks = hooks

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        for hook in self.hooks:
            batch = hook(batch, indices, generator)
        return batch

    def step(self, done: float) -> None:
        for hook in self.hooks:
            hook.step(done)

    def state(self) -> dict[str, Any]:
        return {"hooks": [hook.state() for hook in self.hooks]}

    def restore(self, state: Mapping[str, Any]) -> None:
        for hook, own in zip(self.hooks, state["hooks"], strict=True):
            hook.restore(own)
