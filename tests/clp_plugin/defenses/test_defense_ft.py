"""Fine-tuning: plain SGD on all benign images, on any network."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import TinyNet, fake_record, random_images, shaken
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import mobilenet_v3_small

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.bench.budget import draw_budget
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.ft import FT
from clp_plugin.defenses.shared import training as _training
from clp_plugin.defenses.shared.training import accuracy, loaded
from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages

NETWORKS = {
    "tiny": (lambda: shaken(TinyNet()), 12),
    "preactresnet18": (lambda: build("preactresnet18", num_classes=5, width=2).eval(), 16),
    "vgg11_bn": (lambda: build("vgg11_bn", num_classes=5, width=2).eval(), 16),
    "mobilenet_v3_small": (lambda: mobilenet_v3_small(num_classes=5).eval(), 32),
}


def budget_of(images: ArrayImages | None, size: int = 12) -> Budget:
    return Budget((3, size, size), 5, benign=images)


def bright_quarters(count: int, seed: int = 0) -> ArrayImages:
    """Four classes that a small network can learn: which quarter of the image is bright."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (count, 3, 12, 12), dtype=np.uint8)
    labels = rng.integers(0, 4, count, dtype=np.int64)
    for image, label in zip(pixels, labels, strict=True):
        row, column = 6 * (label // 2), 6 * (label % 2)
        image[:, row : row + 6, column : column + 6] += 120
    return ArrayImages(pixels, labels, (0.3,) * 3, (0.25,) * 3)


def test_defaults_are_those_that_clp_compares_with() -> None:
    ft = FT()
    assert (ft.epochs, ft.lr, ft.batch_size, ft.momentum, ft.weight_decay) == (20, 0.005, 128, 0.9, 5e-4)
    assert (ft.crop_padding, ft.flip, ft.budget) == (4, True, "benign")
    assert not hasattr(ft, "chooses")


def test_one_step_is_downhill_by_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On all images: nothing is held out."""
    monkeypatch.setattr(_training, "resolve", lambda *_: torch.float32)
    images, model = random_images(12), shaken(TinyNet())
    data, by_hand = loaded(images, model), copy.deepcopy(model).train()
    F.cross_entropy(by_hand(data.images), data.labels).backward()
    repaired = FT(epochs=1, lr=0.1, weight_decay=0.01, crop_padding=0, flip=False).repair(model, budget_of(images))
    for found, start in zip(repaired.model.parameters(), by_hand.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(found, start - 0.1 * (start.grad + 0.01 * start), rtol=1e-4, atol=1e-5)


def test_it_learns_and_says_so() -> None:
    images, model, told = bright_quarters(64), shaken(TinyNet()), []
    before = accuracy(model, loaded(bright_quarters(100, seed=1), model))
    ft = FT(epochs=15, lr=0.05, batch_size=16, crop_padding=0, flip=False)
    repaired = ft.repair(model, budget_of(images), progress=lambda *now: told.append(now))
    assert repaired.model is model
    assert repaired.mask is None
    assert accuracy(model, loaded(bright_quarters(100, seed=1), model)) > max(before, 0.7)
    losses = repaired.log["losses"]
    assert len(losses) == 15
    assert losses[-1] < losses[0] / 2
    assert told == [(done, 15) for done in range(1, 16)]


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_trained_and_left_in_order(name: str) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    model = make()
    before = {key: tensor.clone() for key, tensor in model.named_parameters()}
    FT(epochs=1, batch_size=8).repair(model, budget_of(random_images(8, size=size), size))
    assert all(not torch.equal(tensor, before[key]) for key, tensor in model.named_parameters() if "weight" in key)
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_same_seed_same_weights() -> None:
    def trained(seed: int) -> torch.Tensor:
        model: Any = shaken(TinyNet())
        FT(epochs=2, batch_size=5).repair(model, budget_of(random_images(12)), seed=seed)
        return model.conv2.weight.detach()

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))


@pytest.mark.parametrize("images", [None, random_images(1)])
def test_too_few_images_are_refused(images: ArrayImages | None) -> None:
    with pytest.raises(ConfigError, match="expected at least 2 benign images"):
        FT().repair(shaken(TinyNet()), budget_of(images))


def test_more_images_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"--n-budget: .* holds 12 benign images; give 2 to 12, found 13"):
        draw_budget(fake_record(), "ft", FT(), n=13)


def test_a_class_may_be_missing() -> None:
    images = random_images(30)
    FT(epochs=1).repair(shaken(TinyNet()), budget_of(images.take(np.flatnonzero(images.labels != 2))))


def test_a_network_without_batchnorm_is_trained() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    assert len(FT(epochs=2).repair(model, budget_of(random_images(8))).log["losses"]) == 2


def test_through_the_runner() -> None:
    record = fake_record()
    run = run_defense(plan_defense(record, "ft", FT(epochs=1), {}))
    assert run.outcome.budget == "benign:12"
    assert run.outcome.mask is None
    with pytest.raises(ConfigError, match="chooses no parameter"):
        run_defense(plan_defense(record, "ft", FT(epochs=1), {}, protocol="oracle"))
    with pytest.raises(ConfigError, match="holds none"):
        plan_defense(replace(record, benign=random_images(2).take(np.arange(0))), "ft", FT(epochs=1), {})
