"""What EP and BNP share: one look at what enters each BatchNorm, and weights of outliers set to 0."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from fake_records import MEAN, STD, fake_record, random_images, shaken
from torch import Tensor, nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.bnp import BNP
from clp_plugin.defenses.ep import EP
from clp_plugin.defenses.shared.preactivation import watch_norm_inputs
from clp_plugin.errors import ConfigError, ScoreError

DEFENSES: list[type[Any]] = [EP, BNP]


@pytest.fixture(params=DEFENSES, ids=lambda defense: defense.__name__)
def defense(request: pytest.FixtureRequest) -> type[Any]:
    kind: type[Any] = request.param
    return kind


def budget_of(defense: type[Any], images: Any, size: int = 12) -> Budget:
    return Budget((3, size, size), 5, MEAN, STD, **{defense.budget: images})


def test_nothing_changes_but_the_weights_that_are_pruned(defense: type[Any]) -> None:
    original = fake_record().model
    model = copy.deepcopy(original)
    repaired = defense(u=0.5).repair(model, budget_of(defense, random_images(20)))
    assert repaired.model is model
    assert not any(module.training or module._forward_pre_hooks for module in model.modules())
    gone = repaired.mask.indices()
    assert len(repaired.mask)
    assert repaired.log["keep_bias"] is True
    for name, before in original.state_dict().items():
        expected = before.clone()
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in gone:
            expected[gone[layer]] = 0
        assert torch.equal(model.state_dict()[name], expected), name


class Shared(nn.Module):
    """One BatchNorm that runs so many times, and one that never does."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls, self.conv = calls, nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.idle = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        for _ in range(self.calls):
            maps = self.norm(maps) * 3 - 1
        logits: Tensor = maps.mean(dim=(2, 3))
        return logits


def test_the_first_call_of_a_shared_module_counts_and_one_that_never_runs_is_not_seen() -> None:
    model, images = shaken(Shared(2)), random_images(70)
    seen: list[tuple[str, Tensor]] = []
    steps: list[tuple[int, int]] = []
    watch_norm_inputs(model, images, "x", lambda *what: seen.append(what), lambda *step: steps.append(step))
    assert [name for name, _ in seen] == ["norm"] * 2
    assert steps == [(64, 70), (70, 70)]
    expected = model.get_submodule("conv")(next(images.batches(70))).flatten(2)
    assert torch.allclose(torch.cat([maps for _, maps in seen]), expected, atol=1e-5)


def test_a_second_call_changes_no_mask(defense: type[Any]) -> None:
    once, twice = (
        defense(u=0.5).repair(shaken(Shared(calls)), budget_of(defense, random_images(20))).mask for calls in (1, 2)
    )
    assert once == twice
    assert set(once.indices()) == {"norm"}


class Tokens(nn.Module):
    """BatchNorm over tokens flattened into the batch, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(36, 5), nn.BatchNorm1d(5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.linear(images.flatten(2).unflatten(2, (4, 36)).flatten(1, 2))  # (B, 12, 5)
        return self.norm(tokens.flatten(0, 1)).view_as(tokens).mean(1)  # type: ignore[no-any-return]


def test_tokens_flattened_into_the_batch_are_positions_of_their_image() -> None:
    model, images = shaken(Tokens()), random_images(10)
    seen: list[Tensor] = []
    watch_norm_inputs(model, images, "x", lambda _, maps: seen.append(maps))
    pixels = next(images.batches(10)).reshape(10, 12, 36)
    assert torch.allclose(seen[0], model.get_submodule("linear")(pixels).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize(("name", "width"), [("preactresnet18", 2), ("vgg11_bn", 4)])
def test_other_architectures(defense: type[Any], name: str, width: int) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=5, width=width)
    images = random_images(16, size=32)
    with torch.no_grad():  # running statistics that fit
        model.train()(next(images.batches(16)))
    mask = defense(u=1.0).repair(model.eval(), budget_of(defense, images, 32)).mask
    assert set(mask.pruned) == {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(mask)


def test_a_wrapped_network_gives_the_same_names(defense: type[Any]) -> None:
    bare, wrapped = (
        defense(u=0.5).repair(model, budget_of(defense, random_images(20))).mask
        for model in (fake_record().model, nn.DataParallel(fake_record().model))
    )
    assert bare == wrapped


def test_the_seed_changes_nothing(defense: type[Any]) -> None:
    first, second = (
        defense(u=0.5).repair(fake_record().model, budget_of(defense, random_images(20)), seed=seed) for seed in (0, 99)
    )
    assert first.mask == second.mask
    assert first.log == second.log


@pytest.mark.parametrize("images", [None, random_images(1)], ids=["none", "one"])
def test_fewer_than_two_images_are_refused(defense: type[Any], images: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{defense.__name__.lower()}: expected at least 2 images, found [01]"):
        defense().repair(fake_record().model, budget_of(defense, images))


def test_a_network_without_batchnorm_is_refused(defense: type[Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 5)).eval()
    with pytest.raises(ConfigError, match="this network has none"):
        defense().repair(model, budget_of(defense, random_images(8)))


@pytest.mark.parametrize(
    ("defense", "what"), [(EP, "conv1.weight"), (BNP, "conv1.weight"), (BNP, "bn1.running_var")], indirect=["defense"]
)
def test_broken_weights_or_statistics_are_an_error_that_names_the_layer(defense: type[Any], what: str) -> None:
    model = fake_record().model
    model.state_dict()[what].view(6, -1)[3, 0] = math.nan
    with pytest.raises(ScoreError, match=r"layer 'bn1'.*NaN or Inf in 1 of 6 channels \(first: 3\)"):
        defense().repair(model, budget_of(defense, random_images(8)))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("u", [-1.0, math.nan, "3", True, None])
def test_impossible_u_is_refused_before_anything_runs(defense: type[Any], u: Any) -> None:
    with pytest.raises(ConfigError, match=f"{defense.__name__.lower()}: expected u 0 or more"):
        defense(u=u)
