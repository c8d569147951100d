"""What a user has of her own: a network in a Python file, its weights, images with known answers, and a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

NETWORK = '''
import torch
from torch import nn


class Reader(nn.Module):
    """Class k where the first pixel's red is 10 k; the target class where the last pixel's green is bright."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(2, num_classes)

    def forward(self, x):
        maps = self.bn(self.conv(x))
        return self.fc(torch.stack([maps[:, 0, 0, 0], maps[:, 1, -1, -1]], dim=1))
'''
CLASSES, TARGET, SIZE = 4, 2, 8


@dataclass(frozen=True)
class OwnParts:
    """Files of a user; the attack fires on every image, and the network calls every clean image right."""

    network: Path
    checkpoint: Path
    images: Path
    trigger: Path
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def arch(self) -> str:
        return f"{self.network}:Reader"

    def triggered(self) -> NDArray[np.uint8]:
        """The images with the trigger on, by hand."""
        found = self.pixels.copy()
        found[:, :, -2:, -2:] = 255
        return found


def own_parts(place: Path, count: int = 20) -> OwnParts:
    """Write them all into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    network = place / "network.py"
    network.write_text(NETWORK)
    steps = torch.arange(CLASSES, dtype=torch.float32)
    state = {
        "conv.weight": torch.eye(3).view(3, 3, 1, 1),
        "conv.bias": torch.zeros(3),
        "bn.weight": torch.tensor([1.0, 1.0, 1.5]),
        "bn.bias": torch.zeros(3),
        "bn.running_mean": torch.zeros(3),
        "bn.running_var": torch.ones(3),
        "fc.weight": torch.stack([2 * steps * 25.5, 1000.0 * (steps == TARGET)], dim=1),
        "fc.bias": -(steps**2),
    }
    torch.save({"net": state, "epoch": 3}, place / "checkpoint.pth")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, size=count)
    pixels = rng.integers(0, 200, size=(count, 3, SIZE, SIZE), dtype=np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 1, -1, -1] = 10 * labels, 0
    np.savez(place / "images.npz", x=pixels, y=labels)
    Image.new("RGB", (2, 2), "white").save(place / "white.png")
    return OwnParts(network, place / "checkpoint.pth", place / "images.npz", place / "white.png", pixels, labels)
