"""Surrogate-trigger pruning as a defense: a planted channel goes, a clean twin stays, and the log says why."""

from __future__ import annotations

import json

import pytest
import torch
from planted import CHANNEL, LAYER, SHAPE, TARGET, Planted
from torch import nn

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.surrogate_pruning import SurrogatePruning
from clp_plugin.errors import ConfigError

BUDGET = Budget(SHAPE, 3, mean=(0.0,) * 3, std=(1.0,) * 3)
DEFENSE = SurrogatePruning(images=12, rounds=1)


def test_the_planted_channel_is_pruned_and_its_class_is_named() -> None:
    model = Planted(backdoor=True)
    found = DEFENSE.repair(model, BUDGET, seed=0)
    assert found.mask is not None
    assert found.mask.indices() == {LAYER: [CHANNEL]}
    assert found.log["target"] == TARGET
    assert found.log["accepted"]
    (only,) = found.log["rounds"]
    assert only["after"] < only["before"]
    assert found.model.norm.weight[CHANNEL] == 0
    assert torch.equal(model.norm.weight, Planted(backdoor=True).norm.weight)
    assert json.loads(json.dumps(found.log))["finding"].startswith("hint of a backdoor, not validated")


def test_a_clean_twin_is_left_as_it_is_with_the_number() -> None:
    found = DEFENSE.repair(Planted(backdoor=False), BUDGET, seed=0)
    assert found.mask is not None
    assert len(found.mask) == 0
    assert not found.log["accepted"]
    assert f"{found.log['patch']['success']:.0%}" in found.log["finding"]
    for one, other in zip(
        found.model.state_dict().values(), Planted(backdoor=False).state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_network_without_batchnorm_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(ConfigError, match="running statistics"):
        DEFENSE.repair(model, BUDGET)


@pytest.mark.parametrize(
    "wrong", [{"gate_size": 0}, {"gate_success": 0.0}, {"rounds": 0}, {"least_agreement": 1.1}, {"images": 5}]
)
def test_impossible_options_are_refused_before_anything_runs(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SurrogatePruning(**wrong)
