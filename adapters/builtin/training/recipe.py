"""How to train, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clp_plugin.errors import ConfigError
from clp_plugin.types import Precision


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum on a cosine schedule, one step a batch.

    Attributes:
        epochs: Passes over the training images.
        lr: Highest learning rate.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty, on all parameters.
        batch_size: Images a step; the last, smaller batch of a pass is left out (another one each time).
        warmup_epochs: The learning rate rises linearly for so long, then falls to 0 along a half cosine.
        crop_padding: Random shift by up to so many pixels, black at the edges.
        flip: Mirror half of the images left to right.
        nesterov: Nesterov's momentum.
        precision: ``"auto"`` is bfloat16 where the device computes in it, else float32. Weights stay float32.
    """

    epochs: int
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    warmup_epochs: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    nesterov: bool = False
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        limits = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("batch_size", self.batch_size >= 2, "at least 2 (BatchNorm needs several images)"),
            ("warmup_epochs", 0 <= self.warmup_epochs < self.epochs, f"in [0, {self.epochs})"),
            ("crop_padding", self.crop_padding >= 0, "at least 0"),
            ("nesterov", not self.nesterov or self.momentum > 0, "off where momentum is 0"),
            ("precision", self.precision in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
        )
        for name, fine, expected in limits:
            if not fine:
                raise ConfigError(f"recipe: expected {name} {expected}, found {getattr(self, name)!r}")


RECIPES: Mapping[str, Recipe] = {
    # CLP (ECCV 2022), 5.1.
    "clp-paper": Recipe(epochs=150, lr=0.1, momentum=0.9, weight_decay=5e-4, batch_size=128, crop_padding=4, flip=True),
    # For networks of some 0.3 million parameters, which two cores train to the end in an hour or two: a schedule as is
    # usual today, chosen before any of them was trained.
    "small-network": Recipe(
        epochs=30, lr=0.1, weight_decay=5e-4, batch_size=128, warmup_epochs=2, crop_padding=4, flip=True, nesterov=True
    ),
    # Found by search on seeds 100 to 102; docs/demo.md reports other seeds.
    "demo": Recipe(epochs=8, lr=0.1, weight_decay=5e-4, batch_size=64, warmup_epochs=0.33, crop_padding=2),
}
