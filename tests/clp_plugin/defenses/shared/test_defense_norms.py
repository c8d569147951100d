"""BatchNorm layers with other weights, against copies of the network whose weights were set by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import CLASSES, SIZE, TinyNet, bits, fake_record, random_images, shaken
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import FrozenBatchNorm2d

from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.shared.norms import (
    THRESHOLDS,
    MaskLearning,
    ScaledNorms,
    affine_norms,
    mask_below,
    with_norms,
    working_copy,
)
from clp_plugin.defenses.shared.training import Labeled, accuracy, hold_out, loaded
from clp_plugin.errors import ConfigError
from clp_plugin.masking.apply import masked
from clp_plugin.types import Metrics, Progress

LAYERS = ("bn1", "bn_sum")
pytestmark = pytest.mark.usefixtures("float32_only")


def images(count: int = 6, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def draws(seed: int, **sizes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def by_hand(model: nn.Module, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> nn.Module:
    """A copy in which the numbers stand in the parameters themselves."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in weights.items():
            other.get_submodule(name).weight.copy_(weight)  # type: ignore[operator,union-attr]
        for name, bias in biases.items():
            other.get_submodule(name).bias.copy_(bias)  # type: ignore[operator,union-attr]
    return other


def no_bias_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.register_parameter("bias", None)
    return norm


class OneNorm(nn.Module):
    """A convolution, the norm in question, a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = norm
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("with_biases", [False, True])
def test_replaced_numbers_act_as_if_they_were_the_parameters(train: bool, with_biases: bool) -> None:
    model = shaken(TinyNet()).train(train)
    weights = draws(0, bn1=6, bn_sum=6)
    biases = draws(1, bn1=6) if with_biases else {}
    other = by_hand(model, weights, biases)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert torch.equal(with_norms(model, weights, biases)(images()), other(images()))
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name


def test_running_statistics_move_in_train_mode_only() -> None:
    model = shaken(TinyNet())
    before = bits(model)
    run = with_norms(model, draws(0, bn1=6))
    run(images())
    assert bits(model) == before
    model.train()
    run(images())
    moved = {name for name, now in bits(model).items() if now != before[name]}
    assert moved == {f"{layer}.{kind}" for layer in LAYERS for kind in ("running_mean", "running_var")} | {
        f"{layer}.num_batches_tracked" for layer in LAYERS
    }


def test_gradients_reach_what_is_given_and_are_those_of_the_parameters() -> None:
    model = shaken(TinyNet()).requires_grad_(False)
    labels = torch.arange(6) % CLASSES
    weights = {name: w.requires_grad_() for name, w in draws(0, bn1=6, bn_sum=6).items()}
    biases = {name: b.requires_grad_() for name, b in draws(1, bn1=6, bn_sum=6).items()}
    F.cross_entropy(with_norms(model, weights, biases)(images()), labels).backward()
    other: Any = by_hand(model, weights, biases).requires_grad_(True)
    F.cross_entropy(other(images()), labels).backward()
    for name in LAYERS:
        assert torch.allclose(weights[name].grad, getattr(other, name).weight.grad, atol=1e-7)  # type: ignore[arg-type]
        assert torch.allclose(biases[name].grad, getattr(other, name).bias.grad, atol=1e-7)  # type: ignore[arg-type]
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_wrapped_network_has_the_same_names() -> None:
    model = shaken(TinyNet())
    wrapped = nn.DataParallel(model)
    weights = draws(0, bn1=6)
    assert list(affine_norms(wrapped, "x")) == list(LAYERS)
    assert torch.equal(with_norms(wrapped, weights)(images()), with_norms(model, weights)(images()))


@pytest.mark.parametrize(
    "norm",
    [
        nn.Identity(),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        FrozenBatchNorm2d(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_network_without_a_fitting_norm_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ConfigError, match="anp acts on BatchNorm layers with weights, and this network has none"):
        affine_norms(OneNorm(norm), "anp")


def test_only_norms_with_weights_are_found() -> None:
    model = nn.Sequential(OneNorm(nn.BatchNorm2d(4)), OneNorm(nn.BatchNorm2d(4, affine=False)), nn.BatchNorm1d(5))
    assert list(affine_norms(model, "x")) == ["0.norm", "2"]


def test_score_at_the_threshold_is_pruned_in_the_score_s_own_precision() -> None:
    values = {"a": torch.tensor([0.0, 0.15, 0.15001, 1.0]), "b": torch.tensor([0.5, 0.05]).requires_grad_()}
    assert mask_below(values, 0.15).indices() == {"a": [0, 1], "b": [1]}
    assert mask_below(values, 0).indices() == {"a": [0]}
    assert len(mask_below(values, 1)) == 6
    assert mask_below(values, 0.15).pruned["a"].dtype == np.bool_


def test_factors_scale_weights_and_biases_layer_by_layer() -> None:
    model: Any = shaken(TinyNet())
    of_weights, of_biases = draws(0, x=12)["x"], draws(1, x=12)["x"]
    other = by_hand(
        model,
        {"bn1": model.bn1.weight * of_weights[:6], "bn_sum": model.bn_sum.weight * of_weights[6:]},
        {"bn1": model.bn1.bias * of_biases[:6], "bn_sum": model.bn_sum.bias * of_biases[6:]},
    ).train()
    scaled = ScaledNorms(working_copy(model), "x")
    assert scaled.channels == 12
    assert torch.equal(scaled.logits(images(), of_weights, of_biases), other(images()))
    parts = scaled.by_layer(torch.arange(12))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "bn1": [0, 1, 2, 3, 4, 5], "bn_sum": [6, 7, 8, 9, 10, 11]
    }  # fmt: skip


def test_factors_of_a_norm_without_bias_are_ignored() -> None:
    model = OneNorm(no_bias_norm(4))
    network: Any = working_copy(model)
    scaled, ones, expected = ScaledNorms(network, "x"), torch.ones(4), model.train()(images())
    for _ in range(2):
        assert torch.equal(scaled.logits(images(), ones, 7 * ones), expected)
        assert network.norm.bias is None


def test_frozen_copy_gives_gradients_to_factors_only_and_the_model_stays() -> None:
    model = shaken(TinyNet())
    before = bits(model)
    network = working_copy(model)
    factors = torch.ones(12, requires_grad=True)
    ScaledNorms(network, "x").logits(images(), factors).sum().backward()
    assert factors.grad is not None
    assert factors.grad.any()
    assert not any(p.requires_grad for p in network.parameters())
    assert network.training
    assert bits(model) == before
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


VALUES = {"bn1": torch.tensor([0.0, 0.12, 0.5, 0.9, 1.0, 1.0]), "bn_sum": torch.tensor([0.31, 1, 1, 1, 1, 1])}


@dataclass(frozen=True)
class Known(MaskLearning):
    """Learns nothing: its values were written down."""

    def learn(
        self, model: nn.Module, data: Labeled, *, seed: int, progress: Progress | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return VALUES, {"images": len(data)}


def budget(count: int = 20, **more: Any) -> Budget:
    return Budget((3, SIZE, SIZE), CLASSES, benign=random_images(count), **more)


@pytest.mark.parametrize(
    ("threshold", "pruned"),
    [
        (0, {"bn1": [0]}),
        (0.1, {"bn1": [0]}),
        (0.12, {"bn1": [0, 1]}),
        (0.313, {"bn1": [0, 1], "bn_sum": [0]}),
        (1, {"bn1": [0, 1, 2, 3, 4, 5], "bn_sum": [0, 1, 2, 3, 4, 5]}),
    ],
)
def test_given_threshold_prunes_weights_and_nothing_else(threshold: float, pruned: dict[str, list[int]]) -> None:
    model = shaken(TinyNet())
    given = copy.deepcopy(model)
    repaired = Known(threshold=threshold).repair(given, budget())
    assert repaired.mask is not None
    assert repaired.mask.indices() == pruned
    assert repaired.model is given
    assert bits(repaired.model) == bits(masked(model, repaired.mask, keep_bias=True))
    assert not {name for name, b in bits(repaired.model).items() if b != bits(model)[name]} - {
        "bn1.weight",
        "bn_sum.weight",
    }
    assert repaired.log == {"threshold": threshold, "keep_bias": True, "rule": "fixed", "images": 14}  # of 20, by class


def test_threshold_is_the_largest_that_held_out_images_allow() -> None:
    """The rule, written out again: from 0 in steps of 0.05 until the accuracy falls too far."""
    for seed in range(4):
        model, given, tolerance = shaken(TinyNet(), seed), budget(60), 0.02
        repaired = Known(tolerance=tolerance).repair(copy.deepcopy(model), given, seed=seed)
        assert given.benign is not None
        _, held = hold_out(loaded(given.benign, model), 0.2, seed)
        last: dict[str, list[int]] = {}
        for threshold in [round(0.05 * step, 2) for step in range(20)]:
            mask = mask_below(VALUES, threshold)
            if accuracy(model, held) - accuracy(masked(model, mask, keep_bias=True), held) > tolerance + 0.5 / len(
                held
            ):
                break
            last = mask.indices()
        assert repaired.mask is not None
        assert repaired.mask.indices() == last
        assert repaired.log["rule"].startswith("strongest with at most 0.02 less accuracy")


def test_grid_is_the_published_one() -> None:
    assert [round(0.05 * step, 2) for step in range(20)] == list(THRESHOLDS)


def test_judge_decides_where_there_is_one() -> None:
    """By the toolboxes' rule: the lowest ASR; here it falls with every channel."""
    given = budget(judge=lambda model: Metrics(0.9, float(model.bn1.weight.count_nonzero()) / 6, 0, 0, 1, 1))
    repaired = Known(threshold=0.1).repair(shaken(TinyNet()), given)
    assert repaired.log["threshold"] == 0.9
    assert repaired.log["rule"].startswith("oracle")


def test_flags_and_mode_stay_and_the_runner_takes_it() -> None:
    model = shaken(TinyNet())
    model.get_parameter("conv1.weight").requires_grad_(False)
    found = run_defense(plan_defense(fake_record(model), "known", Known(threshold=0.2), {})).repaired.model
    assert not found.training
    assert [name for name, p in found.named_parameters() if not p.requires_grad] == ["conv1.weight"]


@pytest.mark.parametrize(
    ("benign", "message"),
    [
        (None, "at least 2 benign images, found 0"),
        (random_images(1), "at least 2 benign images, found 1"),
        (random_images(2), "known: expected at least 2 images to learn from, found 1 beside 1 held out"),
    ],
)
def test_too_few_images_are_refused(benign: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Known().repair(shaken(TinyNet()), Budget((3, SIZE, SIZE), CLASSES, benign=benign))


def test_network_without_norms_is_refused_before_its_images_are_read() -> None:
    with pytest.raises(ConfigError, match="known acts on BatchNorm"):
        Known().repair(OneNorm(nn.Identity()), Budget((3, SIZE, SIZE), CLASSES))


@pytest.mark.parametrize(
    "option",
    [
        {"threshold": -0.1}, {"threshold": 1.1}, {"threshold": float("nan")}, {"tolerance": 2}, {"held_out": 0},
        {"held_out": 1}, {"batch_size": 1}, {"batch_size": 2.5}, {"batch_size": True}, {"momentum": 1},
        {"momentum": -0.1}, {"crop_padding": -1}, {"crop_padding": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_option_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"known: expected {name} "):
        Known(**option)
