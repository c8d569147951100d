"""An attack on the built-in images that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clp_plugin.adapters.builtin.attack import attacked
from clp_plugin.adapters.builtin.settings import AttackSettings
from clp_plugin.adapters.builtin.training.recipe import Recipe


def small_attack(method: str, *, epochs: int = 1, crop_padding: int = 0, **changes: Any) -> AttackSettings:
    """An all-to-one attack on class 3 with 200 training images and a ResNet of two blocks."""
    recipe = Recipe(epochs=epochs, lr=0.05, batch_size=32, crop_padding=crop_padding, precision="float32")
    given = {"n_train": 200, "n_test": 60, "model_options": {"width": 2, "blocks": (1, 1)}, "target": 3, "seed": 1}
    return AttackSettings(method, "digits", "resnet18", recipe, **{**given, **changes})


def run_attack(settings: AttackSettings, out: Path, **how: Any) -> Path:
    """The folder of a finished record; ``how`` are options of :func:`~clp_plugin.adapters.builtin.attack.attacked`."""
    with attacked(settings, out, **how):
        return out
