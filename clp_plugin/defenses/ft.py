"""Fine-tuning: the plainest repair there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.training import SGDTraining, benign_images, train_with_sgd
from clp_plugin.types import BudgetKind, Progress


@dataclass(frozen=True)
class FT(SGDTraining):
    """Train all weights on the benign images for a few epochs.

    Source:
        The baseline of CLP (ECCV 2022), 5.1: 500 images, batches of 128, learning rate 0.005, 20 epochs. Momentum,
        weight decay, schedule and augmentation are not told there: 0.9, 5e-4, none, crop and flip.
    """

    budget: ClassVar[BudgetKind] = "benign"

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """All benign images are trained on: nothing is chosen, so nothing is held out. ``log["losses"]``: of each epoch."""
        losses = train_with_sgd(model, benign_images(budget, model), self, seed=seed, progress=progress)
        return Repaired(model, log={"losses": losses})
