"""Small made-up records for tests: random images, a stamped corner, a random network. No training, no files."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.images import ArrayImages
from clp_plugin.types import Ints, Provenance, Record, TargetRule, TriggeredSet

SIZE = 12
CLASSES = 5
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)


class TinyNet(nn.Module):
    """Fused, diagonal, lone-convolution and head layers in one network; nothing is trained."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn_sum = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 8, 3, stride=2)
        self.linear = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        first = torch.relu(self.bn1(self.conv1(images)))
        second = torch.relu(self.bn_sum(first + self.conv2(first)))
        third = torch.relu(self.conv3(second))
        logits: Tensor = self.linear(third.mean(dim=(2, 3)))
        return logits


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with random weights and BatchNorm statistics, so that no channel is like another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + 0.05)
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 2 + 0.1)
    return model.eval()


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every tensor of the model to the last bit; those of NaN are equal too."""
    return {name: t.detach().contiguous().view(-1).numpy().tobytes() for name, t in model.state_dict().items()}


def random_images(count: int, seed: int = 0, classes: int = CLASSES, size: int = SIZE) -> ArrayImages:
    """Noise with labels in a shuffled, uneven order."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return ArrayImages(pixels, rng.integers(0, classes, count, dtype=np.int64), MEAN, STD)


def stamped(images: ArrayImages) -> ArrayImages:
    """The same images with a white corner of 3 x 3 pixels."""
    pixels = images.pixels.copy()
    pixels[:, :, -3:, -3:] = 255
    return ArrayImages(pixels, images.labels, images.mean, images.std)


def fake_record(
    model: nn.Module | None = None,
    *,
    kind: Literal["all_to_one", "all_to_all"] = "all_to_one",
    target: int | None = 1,
    count: int = 40,
    seed: int = 0,
    size: int = SIZE,
) -> Record:
    """A record whose triggered images are in another order than their clean twins, as toolboxes store them."""
    clean = random_images(count, seed, size=size)
    rule = TargetRule(kind, CLASSES, target if kind == "all_to_one" else None)
    index: Ints = np.flatnonzero(rule.counted(clean.labels)).astype(np.int64)
    np.random.default_rng(seed + 1).shuffle(index)
    provenance = Provenance(
        toolbox="fake", path="nowhere/fake", sha256="0" * 64, attack="corner", dataset="noise", architecture="tiny",
        poison_rate=0.1, seed=seed, mean=MEAN, std=STD,
    )  # fmt: skip
    return Record(
        model=shaken(TinyNet() if model is None else model, seed),
        input_shape=(3, size, size),
        clean=clean,
        triggered=TriggeredSet(stamped(clean.take(index)), index),
        target=rule,
        benign=random_images(12, seed + 2, size=size),
        provenance=provenance,
    )


def with_wrong_pairs(record: Record) -> Record:
    """A copy that also holds the triggered images whose true label is the target, which must not count."""
    index = np.arange(len(record.clean), dtype=np.int64)
    clean = record.clean
    assert isinstance(clean, ArrayImages)
    return replace(record, triggered=TriggeredSet(stamped(clean), index))


def normalized(images: ArrayImages, position: int) -> Tensor:
    """One image as the model takes it, ``(1, C, H, W)`` float64, by the definition."""
    pixels = torch.from_numpy(images.pixels[position].astype(np.float64) / 255)
    mean = torch.tensor(images.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(images.std, dtype=torch.float64)[:, None, None]
    return ((pixels - mean) / std)[None]
