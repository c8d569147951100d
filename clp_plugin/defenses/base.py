"""What a defense is, and all that it may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import nn

from clp_plugin.types import ImageSet, Mask

BudgetKind = Literal["none", "benign"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Budget:
    """Everything that a defense receives besides the model: nothing, or n benign images. Never a test image.

    Attributes:
        input_shape: ``(C, H, W)``.
        num_classes: Number of classes.
        benign: Benign images with labels, or None for a data-free defense.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    benign: ImageSet | None = None


@dataclass(frozen=True)
class Repaired:
    """What a defense returns.

    Attributes:
        model: The repaired model.
        mask: What was pruned, for defenses that prune.
        log: Plain values worth keeping (thresholds, seconds of parts).
    """

    model: nn.Module
    mask: Mask | None = None
    log: Mapping[str, Any] = field(default_factory=dict)


class Defense(Protocol):
    """A repair method. The runner owns cloning, seeding, timing, device, eval mode and metrics."""

    @property
    def budget(self) -> BudgetKind:
        """What it needs; it receives exactly that."""
        ...

    def repair(self, model: nn.Module, budget: Budget, *, seed: int, progress: Progress | None = None) -> Repaired:
        """Repair ``model``, which is the defense's own copy, in eval mode."""
        ...
