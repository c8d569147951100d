"""An attack on the built-in images that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clp_plugin.adapters.builtin.attack import attacked
from clp_plugin.adapters.builtin.attacks.base import Attack
from clp_plugin.adapters.builtin.settings import AttackSettings
from clp_plugin.adapters.builtin.training.recipe import Recipe

# Options of each attack with which preparing it takes a moment.
QUICK: dict[str, dict[str, Any]] = {
    "badnets": {"corner": "top-left", "inset": 1},
    "blended": {"alpha": 0.3},
    "cla": {"clean_epochs": 1, "steps": 2},
    "iab": {"width": 2, "mask_epochs": 1},
    "sig": {"delta": 33.5, "frequency": 4.0},
    "ssba": {"bits": 4, "width": 2, "epochs": 1, "batch_size": 16},
    "trojan": {"clean_epochs": 1, "steps": 3, "inset": 1},
    "wanet": {"strength": 2.0, "noise": 1.5, "cross_ratio": 1.0},
}
LEARNT = ["iab", "ssba", "trojan"]  # their triggers are trained


def small_attack(method: str, *, epochs: int = 1, crop_padding: int = 0, **changes: Any) -> AttackSettings:
    """An all-to-one attack on class 3 with 200 training images and a ResNet of two blocks."""
    recipe = Recipe(epochs=epochs, lr=0.05, batch_size=32, crop_padding=crop_padding, precision="float32")
    given = {"n_train": 200, "n_test": 60, "model_options": {"width": 2, "blocks": (1, 1)}, "target": 3, "seed": 1}
    return AttackSettings(method, "digits", "resnet18", recipe, **{**given, **changes})


SMALL_BADNETS = small_attack("badnets", epochs=2, crop_padding=1)


def run_attack(settings: AttackSettings, out: Path, **how: Any) -> Path:
    """The folder of a finished record; ``how`` are options of :func:`~clp_plugin.adapters.builtin.attack.attacked`."""
    with attacked(settings, out, **how):
        return out


def stored(attack: Attack) -> tuple[dict[str, Any], dict[str, bytes]]:
    """All that a record keeps of an attack, to be compared."""
    return attack.to_json(), {name: array.tobytes() for name, array in attack.arrays().items()}
