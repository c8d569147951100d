"""ANP against its two problems written out by hand, and what it may and may not change."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import CLASSES, SIZE, TinyNet, bits, random_images, shaken
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.anp import ANP
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.shared.norms import ScaledNorms, working_copy
from clp_plugin.defenses.shared.training import Labeled, loaded
from clp_plugin.errors import ConfigError
from clp_plugin.masking.apply import masked

PLAIN = {"crop_padding": 0, "flip": False}


def budget(count: int = 20, **more: Any) -> Budget:
    return Budget((3, SIZE, SIZE), CLASSES, benign=random_images(count), **more)


def labeled(count: int = 12) -> Labeled:
    return loaded(random_images(count), nn.Identity())


class OneNorm(nn.Module):
    """Convolution, BatchNorm, ReLU, mean over the image, head: small enough for gradients by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return logits


def loss_and_slopes(model: Any, data: Labeled, of_weights: Any, of_biases: Any) -> tuple[float, Any, Any]:
    """Cross-entropy of OneNorm with these factors, and its gradient by them, by the chain rule, in float64."""
    maps = model.conv.double()(data.images.double()).detach().numpy()
    zero_mean = maps - maps.mean(axis=(0, 2, 3), keepdims=True)
    maps = zero_mean / np.sqrt(maps.var(axis=(0, 2, 3), keepdims=True) + model.norm.eps)
    weight, bias, head, offset = (
        p.detach().double().numpy() for p in (model.norm.weight, model.norm.bias, model.head.weight, model.head.bias)
    )
    out = (weight * of_weights)[:, None, None] * maps + (bias * of_biases)[:, None, None]
    logits = np.maximum(out, 0).mean(axis=(2, 3)) @ head.T + offset
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows, labels = np.arange(len(data)), data.labels.numpy()
    loss = -np.log(shares[rows, labels]).mean()
    shares[rows, labels] -= 1
    at_out = (shares / len(data) @ head)[:, :, None, None] * (out > 0) / (out.shape[2] * out.shape[3])
    return loss, (at_out * maps).sum(axis=(0, 2, 3)) * weight, at_out.sum(axis=(0, 2, 3)) * bias


def slow_masks(model: nn.Module, data: Labeled, anp: ANP, seed: int) -> Any:
    """The paper's loop. Draws in the order of the defense: a batch, then a random point of the ball."""
    generator = torch.Generator().manual_seed(seed)
    mask, speed = np.ones(4), np.zeros(4)
    for _ in range(anp.iterations):
        batch = data.take(torch.randint(len(data), (anp.batch_size,), generator=generator))
        d, x = (2 * torch.rand(2, 4, generator=generator).numpy().astype(np.float64) - 1) * anp.eps
        _, by_weights, by_biases = loss_and_slopes(model, batch, mask + d, 1 + x)
        d, x = d + anp.eps * np.sign(by_weights), x + anp.eps * np.sign(by_biases)
        if not anp.as_released:
            d, x = np.clip(d, -anp.eps, anp.eps), np.clip(x, -anp.eps, anp.eps)
        slope = anp.alpha * loss_and_slopes(model, batch, mask, np.ones(4))[1]
        slope += (1 - anp.alpha) * loss_and_slopes(model, batch, mask + d, 1 + x)[1]
        speed = anp.momentum * speed + slope
        mask = np.clip(mask - anp.lr * speed, 0, 1)
    return mask


@pytest.mark.usefixtures("float32_only")
@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_those_of_the_loop_written_out(seed: int, as_released: bool) -> None:
    model, data = shaken(OneNorm(), seed), labeled()
    anp = ANP(iterations=3, batch_size=8, lr=2.0, as_released=as_released, **PLAIN)
    values, _ = anp.learn(model, data, seed=seed)
    expected = slow_masks(copy.deepcopy(model), data, anp, seed)
    assert np.abs(expected - 1).max() > 0.01
    assert values["norm"].numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("float32_only")
def test_log_holds_the_losses_before_the_step() -> None:
    model, data = shaken(OneNorm()), labeled()
    _, log = ANP(iterations=1, batch_size=8, **PLAIN).learn(model, data, seed=0)
    batch = data.take(torch.randint(len(data), (8,), generator=torch.Generator().manual_seed(0)))
    assert log["losses"] == [pytest.approx(loss_and_slopes(copy.deepcopy(model), batch, 1, 1)[0], abs=1e-4)]
    assert log["disturbed_losses"][0] > log["losses"][0]


def disturbed_loss(model: nn.Module, data: Labeled, of_weights: Tensor, of_biases: Tensor) -> float:
    """Of a copy of TinyNet whose BatchNorm numbers were overwritten."""
    other: Any = copy.deepcopy(model).train()
    with torch.no_grad():
        for index, norm in enumerate((other.bn1, other.bn_sum)):
            part = slice(6 * index, 6 * index + 6)
            norm.weight *= 1 + of_weights[part]
            norm.bias *= 1 + of_biases[part]
        return float(F.cross_entropy(other(data.images), data.labels))


@pytest.mark.usefixtures("float32_only")
@pytest.mark.parametrize("seed", range(3))
def test_inner_step_raises_the_loss_and_stays_in_its_ball(seed: int) -> None:
    model, data, starts = shaken(TinyNet(), seed), labeled(), []
    scaled = ScaledNorms(working_copy(model), "anp")

    def loss_of(d: Tensor, x: Tensor) -> Tensor:
        starts.append((d.detach().clone(), x.detach().clone()))
        return F.cross_entropy(scaled.logits(data.images, 1 + d, 1 + x), data.labels)

    worst = ANP(eps=0.05).disturb(loss_of, 12, torch.Generator().manual_seed(seed), torch.device("cpu"))
    (start,) = starts
    assert max(float(point.abs().max()) for point in (*start, *worst)) <= 0.05 + 1e-7
    assert len({float(value) for point in start for value in point}) == 24
    assert disturbed_loss(model, data, *worst) > disturbed_loss(model, data, *start)
    assert disturbed_loss(model, data, *worst) > disturbed_loss(model, data, torch.zeros(12), torch.zeros(12))


def test_released_step_leaves_the_ball_by_up_to_its_size_again() -> None:
    slope = torch.linspace(-1, 1, 50)

    def loss_of(d: Tensor, x: Tensor) -> Tensor:
        return (slope * d - slope * x).sum()

    for as_released in (False, True):
        generator = torch.Generator().manual_seed(0)
        start = (2 * torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) - 1) * 0.4
        expected = start + 0.4 * torch.stack([slope.sign(), -slope.sign()])
        assert 0.7 < float(expected.abs().max()) <= 0.8
        if not as_released:
            expected = expected.clamp(-0.4, 0.4)
        found = ANP(as_released=as_released).disturb(loss_of, 50, generator, torch.device("cpu"))
        assert torch.allclose(torch.stack(found), expected)


def test_channel_that_waits_for_a_disturbance_is_the_one_that_goes() -> None:
    """Channels 0 to 2 see a colour each; channel 3 is silent until disturbed, and then calls everything class 0."""
    model, given = dormant()
    repaired = ANP(iterations=25, batch_size=32, threshold=0.2, **PLAIN).repair(copy.deepcopy(model), given)
    assert repaired.mask is not None
    assert repaired.mask.indices() == {"norm": [3]}
    assert repaired.log["losses"][0] < 0.5 < repaired.log["disturbed_losses"][0]
    expected = masked(model, repaired.mask, keep_bias=True)
    assert bits(repaired.model) == bits(expected)


def dormant() -> tuple[nn.Module, Budget]:
    """OneNorm for images of one colour each, right without disturbance."""
    colours = random_images(60, classes=3)
    pixels = colours.pixels // 4
    pixels[np.arange(60), colours.labels] += 120
    model: Any = OneNorm().eval()
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.bias.zero_()
        for channel in range(3):
            model.conv.weight[channel, channel] = 1 / 9
        model.conv.weight[3] = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
        model.norm.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -3.0]))
        model.head.weight.zero_()
        model.head.weight[:3, :3] = 4 * torch.eye(3)
        model.head.weight[0, 3] = 200
        model.head.bias.copy_(torch.tensor([0.0, 0, 0, -9, -9]))
    images = type(colours)(pixels, colours.labels, colours.mean, colours.std)
    return model, Budget((3, SIZE, SIZE), CLASSES, benign=images)


def test_progress_rises_to_the_total_and_the_log_is_short() -> None:
    seen: list[tuple[int, int]] = []
    repaired = ANP(iterations=23, batch_size=4).repair(
        shaken(TinyNet()), budget(), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 23) for done in range(1, 24)]
    assert len(repaired.log["losses"]) == len(repaired.log["disturbed_losses"]) == 10
    assert repaired.log["keep_bias"] is True


def test_defaults_are_the_paper_s() -> None:
    anp = ANP()
    assert (anp.alpha, anp.eps, anp.lr, anp.momentum, anp.iterations, anp.batch_size) == (0.2, 0.4, 0.2, 0.9, 2000, 128)
    assert (anp.budget, anp.chooses, anp.threshold, anp.as_released) == ("benign", "threshold", None, False)


@pytest.mark.parametrize(
    "option",
    [
        {"iterations": 0}, {"iterations": 2.0}, {"lr": 0}, {"alpha": 1.5}, {"alpha": -0.1}, {"eps": 0},
        {"eps": float("nan")}, {"threshold": 2}, {"batch_size": 1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_option_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"anp: expected {name} "):
        ANP(**option)
