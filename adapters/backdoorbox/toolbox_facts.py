"""The facts on BackdoorBox that driving any checkout needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..driving.checkout import CheckoutFacts

LAUNCHER = "clp_plugin.adapters.backdoorbox.launcher"
BACKDOORBOX = CheckoutFacts(
    name="backdoorbox",
    title="BackdoorBox",
    variable="BACKDOORBOX_ROOT",
    marks=("core/attacks/base.py", "core/defenses/base.py", "core/utils/test.py"),
    source="https://github.com/THUYimingLi/BackdoorBox",
    tested="af3afd1c0b172cbf4b0f8c030a9afa0fecc13fc1",
)
_TRAINING = {"momentum": 0.9, "weight_decay": 5e-4}
# Options of its repairs that run on records, and the values of the toolbox's own examples.
DEFENSES: Mapping[str, Mapping[str, Any]] = {
    "FineTuning": {**_TRAINING, "batch_size": 128, "lr": 0.001, "epochs": 10},
    "NAD": {
        **_TRAINING, "batch_size": 64, "lr": 0.01, "epochs": 20, "gamma": 0.1, "schedule": (2, 4, 6, 8), "tune_lr": 0.01,
        "tune_epochs": 10, "power": 2.0, "beta": 500.0, "layers": ("layer2", "layer3", "layer4"),
    },
    "Pruning": {"batch_size": 128, "layer": "layer4", "prune_rate": 0.2},
}  # fmt: skip
