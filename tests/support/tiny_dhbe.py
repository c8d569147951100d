"""A small game of DHBE: three networks on images of twelve pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_records import MEAN, STD, TinyNet, shaken
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.dhbe.defense import DHBE
from clp_plugin.defenses.dhbe.game import Game

BUDGET = Budget((3, 12, 12), 5, MEAN, STD)
QUICK = {"batch_size": 8, "latent": 6, "width": 3, "patch": 3}


def compute_in(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shared.training", "dhbe.game"):
        monkeypatch.setattr(f"clp_plugin.defenses.{module}.resolve", lambda *_: dtype)


def tiny(seed: int = 0) -> Any:
    return shaken(TinyNet(), seed)


def game_of(options: DHBE, seed: int = 0, model: nn.Module | None = None) -> Game:
    return Game(options, tiny() if model is None else model, BUDGET, seed)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
