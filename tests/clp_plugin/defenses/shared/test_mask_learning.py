"""What ANP and RNP share: a factor learned for each channel, and nothing changed but the weights of those that go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_records import CLASSES, SIZE, TinyNet, bits, fake_record, random_images, shaken
from torch import nn
from torchvision.models import mobilenet_v3_small

from clp_plugin.adapters.builtin.models.build import build as build_model
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.anp import ANP
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.rnp import RNP
from clp_plugin.defenses.shared.training import loaded
from clp_plugin.errors import ConfigError
from clp_plugin.masking.apply import masked

Make = Callable[..., Any]
# Few steps, and so long ones that factors leave 1. A small rate of unlearning keeps the loss of random weights finite.
QUICK: dict[str, Make] = {
    "anp": lambda **options: ANP(**{"iterations": 4, "batch_size": 8, "lr": 3.0, **options}),
    "rnp": lambda **options: RNP(
        **{"unlearn_epochs": 2, "unlearn_lr": 1e-4, "recover_epochs": 3, "batch_size": 8, "lr": 3.0, **options}
    ),
}


@pytest.fixture(params=QUICK)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def quick(name: str) -> Make:
    return QUICK[name]


def budget(count: int = 20) -> Budget:
    return Budget((3, SIZE, SIZE), CLASSES, benign=random_images(count))


@pytest.mark.parametrize("threshold", [None, 0.95])
def test_only_weights_of_pruned_channels_of_the_attacked_network_change(quick: Make, threshold: float | None) -> None:
    model = shaken(TinyNet())
    model.get_parameter("conv2.bias").requires_grad_(False)
    given = copy.deepcopy(model)
    defense = quick(threshold=threshold)
    values, _ = defense.learn(given, loaded(random_images(12), nn.Identity()), seed=0)
    assert all(float(v.min()) >= 0 and float(v.max()) <= 1 for v in values.values())
    assert bits(given) == bits(model)
    repaired = defense.repair(given, budget())
    assert bits(repaired.model) == bits(masked(model, repaired.mask, keep_bias=True))
    assert repaired.log["keep_bias"] is True
    assert not repaired.model.training
    assert [name for name, p in given.named_parameters() if not p.requires_grad] == ["conv2.bias"]
    assert all(p.grad is None for p in given.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in given.modules())
    if threshold:
        assert len(repaired.mask)
        assert repaired.log["threshold"] == threshold


def test_same_seed_gives_the_same_factors_and_another_does_not(quick: Make) -> None:
    model, data = shaken(TinyNet()), loaded(random_images(12), nn.Identity())
    first, again, other = (torch.cat([*quick(lr=1.0).learn(model, data, seed=s)[0].values()]) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "preact": lambda: build_model("preactresnet18", num_classes=CLASSES, width=2, blocks=(1, 1)),
    "vgg": lambda: build_model("vgg11_bn", num_classes=CLASSES, width=2),
    "mobilenet": lambda: mobilenet_v3_small(num_classes=CLASSES),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_other_networks_through_the_runner(name: str, quick: Make, network: str) -> None:
    torch.manual_seed(0)
    record = fake_record(NETWORKS[network](), size=32, count=10)
    once = {"iterations": 2} if name == "anp" else {"unlearn_epochs": 1, "recover_epochs": 1}
    found = run_defense(plan_defense(record, name, quick(batch_size=4, threshold=0.9, **once), {}))
    assert found.repaired.mask is not None
    assert bits(found.repaired.model) == bits(masked(record.model, found.repaired.mask, keep_bias=True))
    assert found.outcome.budget == "benign:12"


def test_oracle_chooses_the_threshold_by_the_test_set(name: str, quick: Make) -> None:
    outcome = run_defense(plan_defense(fake_record(), name, quick(), {}, protocol="oracle")).outcome
    assert outcome.log["rule"].startswith("oracle")
    assert outcome.protocol == "oracle"


def test_network_without_norms_is_refused(name: str, quick: Make) -> None:
    with pytest.raises(ConfigError, match=f"{name} acts on BatchNorm layers"):
        quick().repair(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), budget())


@pytest.mark.parametrize(("count", "found"), [(None, "found 0"), (1, "found 1"), (2, "found 1 beside 1")])
def test_missing_images_are_refused(quick: Make, count: int | None, found: str) -> None:
    benign = random_images(count) if count else None
    with pytest.raises(ConfigError, match=found):
        quick().repair(shaken(TinyNet()), Budget((3, SIZE, SIZE), CLASSES, benign=benign))


def test_divergence_is_told(name: str, quick: Make) -> None:
    model: Any = shaken(TinyNet())
    model.linear.weight.data.fill_(float("nan"))
    with pytest.raises(
        ConfigError, match=f"diverged: its loss is nan; lower {'lr' if name == 'anp' else 'unlearn_lr'}"
    ):
        quick().repair(model, budget())
