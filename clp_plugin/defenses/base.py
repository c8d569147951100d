"""What a defense is, and all that it may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from clp_plugin.fusion.view import FusedView
from clp_plugin.types import BudgetKind, ImageSet, Mask, Metrics, Progress, Scores

Judge = Callable[[nn.Module], Metrics]


@dataclass(frozen=True)
class Budget:
    """Everything that a defense receives besides the model. Never a test image, but for the oracle protocol's judge.

    Attributes:
        input_shape: Shape of one input, ``(C, H, W)``.
        num_classes: Number of classes.
        mean: Mean of the normalization that the model wants, per channel, on the [0, 1] scale.
        std: Standard deviation of that normalization, per channel, on the [0, 1] scale.
        benign: Benign images with their labels, for a defense that declares ``"benign"``; else None.
        poisoned: Images of the training set as it was trained on, poison and all, for a defense that declares
            ``"poisoned"``; else None.
        judge: Metrics of a model on the *test* images, triggered ones included: only under the oracle protocol, where a
            defense that ``chooses`` a parameter chooses it by these, as the toolboxes do. Otherwise None.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    benign: ImageSet | None = None
    poisoned: ImageSet | None = None
    judge: Judge | None = None


@dataclass(frozen=True)
class Repaired:
    """The result of a defense.

    Attributes:
        model: The repaired model.
        mask: The channels that were pruned, for defenses that prune.
        log: Plain values worth keeping (thresholds, losses, seconds of parts).
        view: The linear layers of the network as it came, where the defense found them; its model is not the repaired one.
        scores: The scores of those layers, where the defense computed them.
    """

    model: nn.Module
    mask: Mask | None = None
    log: Mapping[str, Any] = field(default_factory=dict)
    view: FusedView | None = None
    scores: Scores | None = None


class Defense(Protocol):
    """A repair method. The runner owns cloning, seeding, timing, device, eval mode and metrics."""

    @property
    def budget(self) -> BudgetKind:
        """The kind of data that the defense needs; it receives exactly that."""
        ...

    def repair(self, model: nn.Module, budget: Budget, *, seed: int, progress: Progress | None = None) -> Repaired:
        """Repair ``model``, which is the defense's own copy, in eval mode, on the device to work on."""
        ...


@runtime_checkable
class ChoosesByResults(Protocol):
    """A defense with a parameter that can be chosen by looking at results: it then obeys ``Budget.judge``."""

    @property
    def chooses(self) -> str:
        """The parameter's name; empty if there is none after all."""
        ...


def chosen_parameter(defense: Defense) -> str:
    """Name of the parameter that a defense can choose by results, or empty."""
    return defense.chooses if isinstance(defense, ChoosesByResults) else ""
