"""BatchNorm statistics pruning, against torch's divergence and slow loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import MEAN, STD, fake_record, random_images
from torch import nn
from torch.distributions import Normal, kl_divergence

from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.bnp import BNP, Moments, divergence
from clp_plugin.defenses.shared.choice import ORACLE_U
from clp_plugin.images import ArrayImages
from clp_plugin.types import Metrics


def budget_of(images: Any, **more: Any) -> Budget:
    return Budget((3, 12, 12), 5, MEAN, STD, benign=images, **more)


def torch_divergence(first: tuple[Any, Any], second: tuple[Any, Any]) -> Any:
    one, other = (Normal(torch.as_tensor(m), torch.as_tensor(v).sqrt()) for m, v in (first, second))
    return kl_divergence(one, other).numpy()


def test_divergence_is_the_one_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    mean, running_mean = rng.normal(size=(2, 50))
    variance, running_var = rng.uniform(0.05, 4, (2, 50))
    found = divergence(mean, variance, running_mean, running_var, 1e-5)
    assert found == pytest.approx(torch_divergence((mean, variance), (running_mean, running_var)), rel=1e-12)
    assert divergence(mean, variance, mean, variance, 1e-5) == pytest.approx(np.zeros(50), abs=1e-15)


def test_divergence_by_hand_with_the_half_of_the_logarithm() -> None:
    one, four, two = np.array([1.0]), np.array([4.0]), np.array([2.0])
    assert divergence(two, one, 0 * two, four, 1e-5) == pytest.approx([math.log(4) / 2 + 5 / 8 - 0.5])


def test_dead_channels_have_a_finite_divergence() -> None:
    zero, some = np.zeros(1), np.array([0.3])
    assert divergence(some, zero, some, zero, 1e-5) == pytest.approx([0])
    assert divergence(zero, zero, zero, some, 1e-5) == pytest.approx([math.log(0.3 / 1e-5) / 2 + 1e-5 / 0.6 - 0.5])
    assert np.isfinite(divergence(some, some, zero, zero, 1e-12)).all()
    # Above the floor nothing is added.
    assert divergence(zero, np.array([1e-4]), zero, np.array([2e-4]), 1e-5) == pytest.approx([math.log(2) / 2 - 0.25])


def test_moments_are_those_of_a_slow_loop_over_images_and_positions() -> None:
    maps = torch.randn(11, 3, 7, generator=torch.Generator().manual_seed(0)) * 3 + 50
    moments = Moments(3)
    for part in maps.split([4, 6, 1]):
        moments.add(part)
    for k in range(3):
        values = [float(v) for image in maps for v in image[k]]
        mean = sum(values) / len(values)
        assert float(moments.mean[k]) == pytest.approx(mean, rel=1e-6)
        unbiased = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        assert float(moments.variance[k]) == pytest.approx(unbiased, rel=1e-5)


def slow_mask(model: Any, images: ArrayImages, u: float) -> dict[str, list[int]]:
    """What goes in TinyNet, by following its layers by hand and comparing with torch's divergence."""
    with torch.no_grad():
        first = model.conv1(next(images.batches(len(images))).to(model.conv1.weight.dtype))
        act = torch.relu(model.bn1(first))
        entering = {"bn1": first, "bn_sum": act + model.conv2(act)}
    pruned = {}
    for name, maps in entering.items():
        norm = model.get_submodule(name)
        seen = maps.double().transpose(0, 1).flatten(1)
        running = norm.running_mean.double(), norm.running_var.double()
        found = torch_divergence((seen.mean(1), seen.var(1)), running).tolist()
        mean = sum(found) / len(found)
        std = math.sqrt(sum((d - mean) ** 2 for d in found) / len(found))
        pruned[name] = [k for k, d in enumerate(found) if d > mean + u * std]
    return {name: channels for name, channels in pruned.items() if channels}


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prunes_what_the_rule_says_channel_by_channel(u: float, seed: int) -> None:
    model, images = fake_record(seed=seed).model, random_images(70, seed + 9)
    expected = slow_mask(model, images, u)
    repaired = BNP(u=u).repair(model, budget_of(images))
    assert repaired.mask is not None
    assert repaired.mask.indices() == expected
    assert expected


def fitting(images: ArrayImages) -> nn.Sequential:
    """16 channels whose running statistics are those of the images."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16, momentum=None)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        norm.bias.fill_(1.0)
        model.train()(next(images.batches(len(images))))
    return model.eval()


@pytest.mark.parametrize("what", ["running_mean", "running_var"])
def test_the_channel_whose_running_statistics_were_moved_is_the_one_that_goes(what: str) -> None:
    images = random_images(60)
    model: Any = fitting(images)
    getattr(model[1], what)[5] += 1.0
    repaired = BNP().repair(model, budget_of(images))
    assert repaired.mask is not None
    assert repaired.mask.indices() == {"1": [5]}


def test_statistics_of_the_same_images_have_no_divergence() -> None:
    images = random_images(150)
    model: Any = fitting(images)
    moments = Moments(16)
    with torch.no_grad():
        for batch in images.batches(64):
            moments.add(model[0](batch).flatten(2))
    assert torch.allclose(moments.mean, model[1].running_mean.double(), atol=1e-6)
    assert torch.allclose(moments.variance, model[1].running_var.double(), rtol=1e-5)


def test_a_network_with_dead_channels_is_repaired() -> None:
    model: Any = fake_record().model
    with torch.no_grad():
        model.conv1.weight[2] = 0
        model.bn1.running_mean[2] = model.bn1.running_var[2] = 0
    mask = BNP(u=0.0).repair(model, budget_of(random_images(20))).mask
    assert mask is not None
    assert 2 not in mask.indices().get("bn1", [])
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_defaults_are_the_published_ones() -> None:
    bnp = BNP()
    assert (bnp.u, bnp.budget, bnp.chooses) == (3.0, "benign", "u")
    assert BNP(u=0.5).repair(fake_record().model, budget_of(random_images(20))).log == {"u": 0.5, "keep_bias": True}


def test_the_oracle_chooses_u_by_the_test_set_with_biases_kept() -> None:
    images = random_images(60)
    model: Any = fitting(images)
    model[1].running_mean[5] += 1.0

    def judge(judged: Any) -> Metrics:
        weight = judged[1].weight
        assert (judged[1].bias == 1).all()
        return Metrics(float((weight != 0).float().mean()), float(weight[5] != 0), 0.0, 0.0, 10, 10)

    repaired = BNP().repair(model, budget_of(images, judge=judge))
    assert repaired.log["rule"].startswith("oracle")
    assert [one["value"] for one in repaired.log["tried"]] == list(ORACLE_U)
    assert repaired.mask is not None
    assert repaired.mask.indices() == {"1": [5]}
    assert repaired.log["u"] == next(one["value"] for one in repaired.log["tried"] if one["pruned"])


def test_the_runner_gives_it_benign_images() -> None:
    outcome = run_defense(plan_defense(fake_record(), "bnp", BNP(u=0.5), {"u": 0.5})).outcome
    assert outcome.budget == "benign:12"
    assert outcome.pruned
    steps: list[tuple[int, int]] = []
    BNP().repair(fake_record().model, budget_of(random_images(70)), progress=lambda *step: steps.append(step))
    assert steps == [(64, 70), (70, 70)]
