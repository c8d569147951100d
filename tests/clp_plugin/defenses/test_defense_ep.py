"""Entropy pruning, against the definition written as loops over single channels, images and positions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import MEAN, STD, fake_record, random_images
from torch import Tensor, nn

from clp_plugin.bench.budget import draw_budget
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.ep import EP, entropies
from clp_plugin.defenses.shared.choice import ORACLE_U
from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages
from clp_plugin.types import Metrics


def budget_of(images: Any, **more: Any) -> Budget:
    return Budget((3, 12, 12), 5, MEAN, STD, poisoned=images, **more)


def slow_entropies(maxima: list[list[float]], width: float) -> list[float]:
    """Entropy of each of several channels, given as lists over images, value by value."""
    standardized = []
    for values in maxima:
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        standardized.append([(v - mean) / std for v in values])
    low = min(min(values) for values in standardized)
    found = []
    for values in standardized:
        counts: dict[int, int] = {}
        for v in values:
            place = math.floor((v - low) / width)
            counts[place] = counts.get(place, 0) + 1
        found.append(-sum(n / len(values) * math.log(n / len(values)) for n in counts.values()))
    return found


def slow_mask(model: Any, images: ArrayImages, u: float, width: float) -> dict[str, list[int]]:
    """What goes in TinyNet, by following its layers by hand."""
    entering: dict[str, list[Tensor]] = {"bn1": [], "bn_sum": []}
    with torch.no_grad():
        for image in next(images.batches(len(images))).double().unsqueeze(1):
            first = model.conv1(image)
            entering["bn1"].append(first[0])
            act = torch.relu(model.bn1(first))
            entering["bn_sum"].append((act + model.conv2(act))[0])
    pruned = {}
    for name, maps in entering.items():
        maxima = [[float(m[k].max()) for m in maps] for k in range(6)]
        found = slow_entropies(maxima, width)
        mean = sum(found) / len(found)
        std = math.sqrt(sum((h - mean) ** 2 for h in found) / len(found))
        pruned[name] = [k for k, h in enumerate(found) if h < mean - u * std]
    return {name: channels for name, channels in pruned.items() if channels}


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prunes_what_the_rule_says_channel_by_channel(u: float, seed: int) -> None:
    # In float64 no rounding can move a value into the next bin.
    model, images = fake_record(seed=seed).model.double(), random_images(70, seed + 9)
    expected = slow_mask(model, images, u, 0.05)
    repaired = EP(u=u, bin_width=0.05).repair(model, budget_of(images))
    assert repaired.mask is not None
    assert repaired.mask.indices() == expected
    assert expected or u > 1


def test_entropy_of_a_few_values_by_hand() -> None:
    maxima = np.array([[0.0, -3], [0, -1], [2, 1], [2, 3]])
    assert entropies(maxima, 0.01) == pytest.approx([math.log(2), math.log(4)])
    assert entropies(maxima, 100) == pytest.approx([0, 0])
    assert entropies(np.array([[0.0]] * 3 + [[4]]), 0.01) == pytest.approx([math.log(4) - 0.75 * math.log(3)])


@pytest.mark.parametrize(("width", "expected"), [(2.0, math.log(2)), (2.5, 0.0), (1.9, math.log(2))])
def test_a_value_on_an_edge_is_counted_in_the_bin_above_and_the_highest_is_counted_too(
    width: float, expected: float
) -> None:
    assert entropies(np.array([[5.0], [5], [7], [7]]), width) == pytest.approx([expected])  # standardized: -1 and 1


def test_all_channels_of_a_layer_share_one_grid() -> None:
    own, low = np.array([-3.0, -1, 1, 3]), np.array([-10.0, 0, 0, 0])
    alone = entropies(own[:, None], 2.0)[0]
    assert alone == pytest.approx(math.log(4) - 0.75 * math.log(3))  # bins 0, 0, 0, 1
    assert entropies(np.stack([own, low], 1), 2.0)[0] == pytest.approx(math.log(2))  # bins 0, 0, 1, 1


def test_entropies_equal_the_slow_ones_on_random_values() -> None:
    values = np.random.default_rng(3).normal(size=(300, 7)) * np.arange(1, 8) + 20
    values[:30, 4] += 90
    for width in (0.01, 0.1, 0.37):
        assert entropies(values, width) == pytest.approx(slow_entropies(values.T.tolist(), width), abs=1e-12)


def detector(channel: int = 5) -> Any:
    """One of 16 channels adds up 3 x 3 pixels of all colours, so that a white square drives it far away."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    with torch.no_grad():
        model[0].weight[channel] = 1.0  # type: ignore[operator]
    return model.eval()


def half_stamped(count: int = 200, share: int = 10) -> ArrayImages:
    images = random_images(count, seed=3)
    images.pixels[: count // share, :, -3:, -3:] = 255
    return images


def test_the_channel_with_two_groups_is_the_one_that_goes() -> None:
    poisoned = EP().repair(detector(), budget_of(half_stamped())).mask
    assert poisoned is not None
    assert poisoned.indices() == {"1": [5]}
    clean = EP().repair(detector(), budget_of(random_images(200, seed=3))).mask
    assert clean is not None
    assert clean.indices() == {}


def test_constant_channels_are_left_out_and_never_pruned() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4))
    widened = np.insert(values, 2, 7.5, axis=1)
    found = entropies(widened, 0.1)
    assert np.isnan(found[2])
    assert np.array_equal(np.delete(found, 2), entropies(values, 0.1))
    assert np.isnan(entropies(np.full((5, 3), 1.5), 0.1)).all()
    # One float32 step of 7.5 apart: rounding, not signal.
    widened[0, 2] = np.nextafter(np.float32(7.5), np.float32(8))
    assert np.isnan(entropies(widened, 0.1)[2])


@pytest.mark.parametrize("dead", [[2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_a_network_with_dead_channels_is_repaired(dead: list[int]) -> None:
    model: Any = fake_record().model
    with torch.no_grad():
        model.conv1.weight[dead] = 0
    repaired = EP(u=0.0).repair(model, budget_of(random_images(20)))
    assert repaired.mask is not None
    pruned = repaired.mask.indices().get("bn1", [])
    assert not set(pruned) & set(dead)
    assert bool(pruned) == (len(dead) < 5)  # of a single living channel there is nothing to stand out from
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_layers_of_one_channel_prune_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(100, 5)).eval()
    mask = EP(u=0.0).repair(model, budget_of(random_images(8))).mask
    assert mask is not None
    assert len(mask) == 0


def test_defaults_are_the_published_ones() -> None:
    ep = EP()
    assert (ep.u, ep.bin_width, ep.budget, ep.chooses) == (3.0, 0.01, "poisoned", "u")
    log = EP(u=0.5).repair(fake_record().model, budget_of(random_images(20))).log
    assert log == {"u": 0.5, "bin_width": 0.01, "keep_bias": True}


def test_the_oracle_chooses_u_by_the_test_set_with_biases_kept() -> None:
    original = detector()
    with torch.no_grad():
        original[1].bias += 1.0

    def judge(model: Any) -> Metrics:
        weight, bias = model[1].weight, model[1].bias
        assert (bias == 1).all()
        kept = int((weight != 0).sum())
        return Metrics(kept / 16, float(weight[5] != 0), 0.0, 0.0, 10, 10)

    model = copy.deepcopy(original)
    repaired = EP().repair(model, budget_of(half_stamped(), judge=judge))
    log = repaired.log
    assert log["rule"].startswith("oracle")
    assert [one["value"] for one in log["tried"]] == list(ORACLE_U)
    assert repaired.mask is not None
    assert repaired.mask.indices() == {"1": [5]}
    first = next(one for one in log["tried"] if one["pruned"])
    assert log["u"] == first["value"]
    assert model[1].weight[5] == 0


def test_the_runner_gives_it_poisoned_images_and_nothing_else() -> None:
    record = replace(fake_record(), poisoned_training=random_images(30, seed=8))
    ep = EP(u=0.5)
    outcome = run_defense(plan_defense(record, "ep", ep, {"u": 0.5})).outcome
    assert outcome.budget == "poisoned:30"
    assert outcome.pruned
    oracle = run_defense(plan_defense(record, "ep", ep, {"u": 0.5}, protocol="oracle")).outcome
    assert oracle.log["rule"].startswith("oracle")


def test_a_record_without_poisoned_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="ep needs images of the poisoned training set, and nowhere/fake holds none"):
        draw_budget(fake_record(), "ep", EP())


@pytest.mark.parametrize("width", [0, math.inf, "a"])
def test_an_impossible_bin_width_is_refused_before_anything_runs(width: Any) -> None:
    with pytest.raises(ConfigError, match="ep: expected bin_width"):
        EP(bin_width=width)
