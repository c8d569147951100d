"""Records and defenses with which a grid takes a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import Result, bench
from small_attack import run_attack, small_attack

from clp_plugin.adapters.builtin.settings import PRESETS
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.store.outcomes import Outcome, load_outcomes

TINY = replace(
    PRESETS["small"],
    recipe=Recipe(epochs=1, lr=0.05, batch_size=32, precision="float32"),
    n_train=200,
    n_test=60,
    model_options={"width": 2, "blocks": (1, 1)},
)


def tiny_record(place: Path, **changes: Any) -> Path:
    """A record of the built-in bench, made in a second."""
    return run_attack(small_attack("badnets", **changes), place)


def run(out: Path, *more: object) -> Result:
    """``bench leaderboard run`` in this process."""
    return bench("leaderboard", "run", "--out", out, "--device", "cpu", "--workers", "0", *more)


def outcomes(out: Path) -> list[Outcome]:
    """What is stored, in the order of the files."""
    return load_outcomes(out / "cells")


def written(out: Path) -> dict[Path, int]:
    """Every file with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def own_defense(folder: Path, body: str) -> tuple[str, str, str, Path]:
    """Arguments that add a defense ``mine`` whose ``repair(self, model, budget, *, seed, progress)`` has that body."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(
        "import os, signal, time\nfrom pathlib import Path\n"
        "from clp_plugin.defenses.base import Repaired\nfrom clp_plugin.errors import ConfigError\n"
        "class Mine:\n    budget = 'none'\n"
        f"    def repair(self, model, budget, *, seed, progress=None):\n        {body}\n"
    )
    (folder / "mine.yaml").write_text("defenses:\n  mine: {object: 'mine.py:Mine', summary: s}\n")
    return "--method", "mine", "--registry", folder / "mine.yaml"
