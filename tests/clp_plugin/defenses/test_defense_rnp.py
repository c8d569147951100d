"""RNP's two phases against loops written out by hand, and what it may and may not change."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import CLASSES, SIZE, TinyNet, bits, random_images, shaken
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.rnp import RNP
from clp_plugin.defenses.shared.training import Labeled, loaded
from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages
from clp_plugin.masking.apply import masked

PLAIN = {"crop_padding": 0, "flip": False}
LAYERS = ("bn1", "bn_sum")


def budget(count: int = 20) -> Budget:
    return Budget((3, SIZE, SIZE), CLASSES, benign=random_images(count))


def labeled(count: int = 12) -> Labeled:
    return loaded(random_images(count), nn.Identity())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Colours(nn.Module):
    """A channel for each of three colours, and more; the mean over the image decides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 3)
        with torch.no_grad():
            self.conv.weight[:3] = torch.eye(3)[:, :, None, None] / 9
            self.conv.bias[:3] = 0
            self.head.weight.zero_()
            self.head.weight[:3, :3] = 4 * torch.eye(3)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return logits


def colour_images(count: int = 60) -> ArrayImages:
    """The label is the brightest colour."""
    noise = random_images(count, classes=3)
    pixels = noise.pixels // 4
    pixels[np.arange(count), noise.labels] += 120
    return ArrayImages(pixels, noise.labels, noise.mean, noise.std)


def ascent(model: nn.Module, batches: list[Labeled], rnp: RNP, lr_of: Any) -> dict[str, Tensor]:
    """Plain SGD up the cross-entropy, with momentum and weight decay, tensor by tensor."""
    network = copy.deepcopy(model).train()
    speed: dict[str, Tensor] = {}
    for step, batch in enumerate(batches):
        network.zero_grad()
        F.cross_entropy(network(batch.images), batch.labels).backward()
        slopes = {name: -p.grad for name, p in network.named_parameters() if p.grad is not None}
        norm = float(sum(float((g.double() ** 2).sum()) for g in slopes.values()) ** 0.5)
        scale = 1.0 if rnp.as_released else min(1.0, rnp.clip_norm / norm)
        with torch.no_grad():
            for name, p in network.named_parameters():
                push = scale * slopes[name] + rnp.weight_decay * p
                speed[name] = rnp.momentum * speed[name] + push if step else push
                p -= lr_of(step) * speed[name]
    return {name: p.detach() for name, p in network.named_parameters()}


def passes(data: Labeled, count: int, seed: int = 0) -> list[Labeled]:
    """The images in the order of each pass, where a pass is one batch."""
    generator = seeded(seed)
    return [data.take(torch.randperm(len(data), generator=generator)) for _ in range(count)]


@pytest.mark.usefixtures("float32_only")
@pytest.mark.parametrize("option", [{"clip_norm": 0.5}, {"clip_norm": 0.5, "as_released": True}, {}], ids=str)
def test_unlearning_is_sgd_up_the_loss_with_a_gradient_that_is_clipped(option: dict[str, Any]) -> None:
    model, data = shaken(TinyNet()), labeled()
    rnp = RNP(unlearn_epochs=3, weight_decay=0.1, clean_threshold=0, **PLAIN, **option)
    network = copy.deepcopy(model)
    assert len(rnp.unlearn(network, data, seeded())) == 3
    expected = ascent(model, passes(data, 3), rnp, lambda _: 0.01)
    for name, p in network.named_parameters():
        assert torch.allclose(p, expected[name], atol=1e-4, rtol=1e-4), name


@pytest.mark.usefixtures("float32_only")
def test_clipping_and_its_absence_differ() -> None:
    found = []
    for as_released in (False, True):
        network = shaken(TinyNet())
        RNP(unlearn_epochs=1, clip_norm=0.5, as_released=as_released, **PLAIN).unlearn(network, labeled(), seeded())
        found.append(network.get_parameter("linear.weight"))
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.usefixtures("float32_only")
def test_learning_rate_falls_to_a_tenth_at_pass_10_and_20() -> None:
    model, data = Colours(4), loaded(colour_images(9), nn.Identity())
    rnp = RNP(unlearn_epochs=22, unlearn_lr=1e-3, clean_threshold=0, **PLAIN)
    network = copy.deepcopy(model)
    assert len(rnp.unlearn(network, data, seeded())) == 22
    expected = ascent(model, passes(data, 22), rnp, lambda step: 1e-3 * 0.1 ** ((step >= 10) + (step >= 20)))
    for name, p in network.named_parameters():
        assert torch.allclose(p, expected[name], atol=1e-5), name


@pytest.mark.usefixtures("float32_only")
@pytest.mark.parametrize("seed", [0, 1])
def test_recovery_is_projected_sgd_on_one_factor_per_weight(seed: int) -> None:
    model: Any = shaken(TinyNet(), seed)
    data = labeled()
    rnp = RNP(recover_epochs=3, lr=3.0, **PLAIN)
    values, acc = rnp.recover(copy.deepcopy(model), data, seeded(seed))
    mask = {name: torch.ones(6) for name in LAYERS}
    speed = {name: torch.zeros(6) for name in LAYERS}
    right = []
    for batch in passes(data, 3, seed):
        other = copy.deepcopy(model).train()
        for name in LAYERS:
            getattr(other, name).weight.data *= mask[name]
        logits = other(batch.images)
        right.append(float((logits.argmax(1) == batch.labels).float().mean()))
        (0.2 * F.cross_entropy(logits, batch.labels)).backward()
        for name in LAYERS:
            slope = getattr(other, name).weight.grad * getattr(model, name).weight.detach()
            speed[name] = 0.9 * speed[name] + slope
            mask[name] = (mask[name] - 3.0 * speed[name]).clamp(0, 1)
    assert list(values) == list(LAYERS)
    for name in LAYERS:
        assert torch.allclose(values[name], mask[name], atol=1e-4)
    assert any(((m > 0) & (m < 1)).any() for m in mask.values())
    assert acc == pytest.approx(right)


def test_channel_that_does_the_harm_is_turned_down() -> None:
    """Every channel but 4 is needed or idle; 4 calls everything class 0."""
    network: Any = Colours(6)
    with torch.no_grad():
        network.head.weight[0, 4] = 30.0
    values, acc = RNP(batch_size=32, **PLAIN).recover(network, loaded(colour_images(), network), seeded())
    assert int(values["norm"].argmin()) == 4
    assert float(values["norm"][4]) < 0.05
    assert float(values["norm"][[0, 1, 2, 3, 5]].min()) > 0.5
    assert acc[-1] > acc[0]


def loud(gain: float) -> tuple[nn.Module, Budget]:
    """Channels 3 to 5 see the colours too, louder, and the head ignores them: a little unlearning makes them decide."""
    model: Any = Colours(6).eval()
    with torch.no_grad():
        model.conv.weight[3:] = model.conv.weight[:3]
        model.conv.bias[3:] = 0
        model.norm.weight[3:] = gain
    return model, Budget((3, SIZE, SIZE), 3, benign=colour_images())


@pytest.mark.usefixtures("float32_only")
def test_accuracy_falls_to_the_stop_and_comes_back_by_factors_alone() -> None:
    model, given = loud(5)
    seen: list[tuple[int, int]] = []
    rnp = RNP(unlearn_lr=0.01, clean_threshold=0.7, batch_size=20, lr=1.0, **PLAIN)
    assert given.benign is not None
    _, log = rnp.learn(
        model, loaded(given.benign, model), seed=0, progress=lambda done, total: seen.append((done, total))
    )
    assert log["unlearned"] is True
    assert log["unlearn_acc"][0] == 1 > 0.7 >= log["unlearn_acc"][-1]
    assert all(acc > 0.7 for acc in log["unlearn_acc"][:-1])
    assert log["recover_acc"][0] < 0.9
    assert log["recover_acc"][-1] > 0.95
    assert len(log["recover_acc"]) == 20
    assert len(log["unlearn_acc"]) < 20
    assert [done for done, _ in seen] == [*range(1, len(log["unlearn_acc"]) + 1), *range(21, 41)]
    assert {total for _, total in seen} == {40}


@pytest.mark.usefixtures("float32_only")
def test_channels_in_which_unlearning_took_place_are_pruned_in_the_attacked_network() -> None:
    model, given = loud(10)
    rnp = RNP(unlearn_lr=0.03, batch_size=20, **PLAIN)
    repaired = rnp.repair(copy.deepcopy(model), given)
    assert repaired.log["unlearned"] is True
    assert repaired.mask is not None
    assert repaired.mask.indices() == {"norm": [3, 4, 5]}
    assert bits(repaired.model) == bits(masked(model, repaired.mask, keep_bias=True))


def test_accuracy_that_stays_up_is_told_and_the_last_weights_are_recovered() -> None:
    model, given = loud(1)
    repaired = RNP(unlearn_lr=1e-6, unlearn_epochs=2, recover_epochs=1, **PLAIN).repair(model, given)
    assert repaired.log["unlearned"] is False
    assert len(repaired.log["unlearn_acc"]) == 2
    assert min(repaired.log["unlearn_acc"]) > 0.9
    assert repaired.mask is not None


def test_frozen_weights_are_unlearned_too() -> None:
    network = shaken(TinyNet()).requires_grad_(False)
    before = network.get_parameter("conv1.weight").clone()
    RNP(unlearn_epochs=1).unlearn(network, labeled(), seeded())
    assert not torch.equal(network.get_parameter("conv1.weight"), before)


def test_defaults_are_the_public_code_s() -> None:
    rnp = RNP()
    assert (rnp.unlearn_epochs, rnp.unlearn_lr, rnp.momentum, rnp.weight_decay) == (20, 0.01, 0.9, 5e-4)
    assert (rnp.clip_norm, rnp.clean_threshold, rnp.recover_epochs, rnp.lr, rnp.alpha) == (20, 0.2, 20, 0.2, 0.2)
    assert (rnp.budget, rnp.chooses, rnp.threshold, rnp.as_released) == ("benign", "threshold", None, False)


@pytest.mark.parametrize(
    "option",
    [
        {"unlearn_epochs": 0}, {"unlearn_lr": 0}, {"weight_decay": -1}, {"clip_norm": 0}, {"clean_threshold": 1.5},
        {"recover_epochs": 0}, {"recover_epochs": 1.5}, {"lr": -1}, {"alpha": 0}, {"threshold": 2}, {"batch_size": 1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_option_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"rnp: expected {name} "):
        RNP(**option)
