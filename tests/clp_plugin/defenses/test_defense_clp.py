"""The method itself, against the threshold rule written as a loop over single channels."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import TinyNet, fake_record
from torch import nn

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.clp import CLP
from clp_plugin.errors import ConfigError, ScoreError
from clp_plugin.types import Mask, Record

ALL = "fused,diagonal,conv"
BUDGET = Budget((3, 12, 12), 5)


def slow_sigma(model: Any) -> dict[str, list[float]]:
    """Scores of TinyNet channel by channel, from the weights, by the definitions in the paper."""
    gain = {
        name: (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).tolist()
        for name, norm in (("bn1", model.bn1), ("bn_sum", model.bn_sum))
    }
    conv1, conv3 = model.conv1.weight.double().detach().numpy(), model.conv3.weight.double().detach().numpy()
    conv2 = model.conv2.weight.double().detach().numpy()
    return {
        "bn1": [float(np.linalg.svd(g * k.reshape(3, 9))[1][0]) for g, k in zip(gain["bn1"], conv1, strict=True)],
        "bn_sum": [abs(g) for g in gain["bn_sum"]],  # fed by a sum: a diagonal layer
        "conv2": [float(np.linalg.svd(k.reshape(6, 9))[1][0]) for k in conv2],
        "conv3": [float(np.linalg.svd(k.reshape(6, 9))[1][0]) for k in conv3],
    }


def slow_mask(sigma: dict[str, list[float]], u: float) -> dict[str, list[int]]:
    found = {}
    for name, values in sigma.items():
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        found[name] = [k for k, v in enumerate(values) if v > mean + u * std]
    return {name: channels for name, channels in found.items() if channels}


def small_record(seed: int = 0) -> Record:
    return fake_record(seed=seed)


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("fused,diagonal", {"bn1", "bn_sum"}),
        ("fused,diagonal,conv", {"bn1", "bn_sum", "conv2", "conv3"}),
        (" conv, diagonal ", {"bn_sum", "conv2", "conv3"}),
    ],
)
def test_prunes_what_the_rule_says_channel_by_channel(layers: str, names: set[str], u: float, seed: int) -> None:
    model = small_record(seed).model
    expected = slow_mask({name: values for name, values in slow_sigma(model).items() if name in names}, u)
    repaired = CLP(u=u, layers=layers).repair(model, BUDGET)
    assert repaired.mask is not None
    assert repaired.mask.indices() == expected


def test_pruned_channels_are_silent_and_the_others_untouched() -> None:
    original = small_record().model
    repaired = CLP(u=1.0, layers=ALL).repair(copy.deepcopy(original), BUDGET)
    assert repaired.mask is not None
    pruned = repaired.mask.indices()
    assert {"bn1", "conv3"} <= set(pruned)
    for name, after in repaired.model.state_dict().items():
        before = original.state_dict()[name]
        layer, _, kind = name.rpartition(".")
        gone = pruned.get(layer, []) if kind in ("weight", "bias") else []
        kept = [k for k in range(len(before)) if k not in gone] if before.ndim else slice(None)
        assert torch.equal(after[kept], before[kept]) if before.ndim else torch.equal(after, before)
        assert not after[gone].any() if gone else True


def test_a_channel_that_was_blown_up_is_the_one_that_goes() -> None:
    model = TinyNet().eval()
    with torch.no_grad():
        model.conv1.weight[2] *= 50
        model.conv3.weight[5] *= 50
    repaired = [CLP(u=2.0, layers=layers).repair(copy.deepcopy(model), BUDGET).mask for layers in (CLP.layers, ALL)]
    assert [mask and mask.indices() for mask in repaired] == [{"bn1": [2]}, {"bn1": [2], "conv3": [5]}]


def test_default_is_the_published_u_and_all_of_it_is_in_the_log() -> None:
    clp = CLP()
    assert (clp.u, clp.score, clp.norm, clp.pairing, clp.budget) == (3.0, "paper", "reshaped", "dataflow", "none")
    log = clp.repair(small_record().model, BUDGET).log
    assert log["u"] == 3.0
    assert log["seconds_score"] >= 0
    assert log["layers"] == {"fused": 1, "diagonal": 1, "conv": 2, "head": 1}


def test_seed_changes_nothing() -> None:
    first, second = (CLP(u=1.0).repair(small_record().model, BUDGET, seed=seed) for seed in (0, 99))
    assert first.mask == second.mask


def test_parity_pairs_as_the_published_code_does() -> None:
    """The last convolution registered before each BatchNorm, unbiased std, no eps."""
    model: Any = small_record().model
    repaired = CLP(u=0.5, pairing="registration").repair(copy.deepcopy(model), BUDGET)
    expected = {}
    for name, conv, norm in (("bn1", model.conv1, model.bn1), ("bn_sum", model.conv2, model.bn_sum)):
        values = []
        for k in range(conv.out_channels):
            weight = (
                conv.weight[k].reshape(conv.weight.shape[1], -1) * (norm.weight[k] / norm.running_var[k].sqrt()).abs()
            )
            values.append(torch.svd(weight.double())[1].max())
        sigma = torch.stack(values)
        expected[name] = torch.where(sigma > sigma.mean() + 0.5 * sigma.std())[0].tolist()
    assert repaired.mask is not None
    assert repaired.mask.indices() == {name: channels for name, channels in expected.items() if channels}


@pytest.mark.parametrize("u", [-1.0, math.nan, "3", True])
def test_impossible_u_is_refused_before_anything_runs(u: Any) -> None:
    with pytest.raises(ConfigError, match="u must be 0 or more"):
        CLP(u=u)


@pytest.mark.parametrize("layers", ["", "fused,head", "fused;conv", "BatchNorm"])
def test_unknown_kind_of_layer_is_refused_before_anything_runs(layers: str) -> None:
    with pytest.raises(ConfigError, match="layers: expected a list of fused, diagonal, conv such as fused,diagonal"):
        CLP(layers=layers)


def test_parity_with_another_score_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="parity mode has only"):
        CLP(pairing="registration", score="relative")


def test_broken_weights_are_an_error_that_names_the_layer() -> None:
    model: Any = small_record().model
    model.conv3.weight.data[2, 0, 0, 0] = math.nan
    with pytest.raises(ScoreError, match=r"layer 'conv3'.*NaN or Inf in 1 of 8 channels \(first: 2\)"):
        CLP().repair(model, BUDGET)


def test_network_without_batchnorm_is_repaired_when_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    with torch.no_grad():
        model[0].weight[3] *= 20  # type: ignore[operator,index]
    assert CLP(u=3.0).repair(model, BUDGET).mask == Mask({})
    repaired = CLP(u=3.0, layers=ALL).repair(model, BUDGET)
    assert repaired.mask is not None
    assert repaired.mask.indices() == {"0": [3]}
    assert not repaired.model.state_dict()["0.bias"][3].any()
