"""What an attack of TrojanZoo stores, and images to judge it on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clp_plugin.networks.architectures import build_model

STEM = "square_white_tar2_alpha0.50_mark(3,4)"
COUNT, TARGET = 12, 2


def stored(root: Path, *, stem: str = STEM, dataset: str = "cifar10") -> Path:
    """The three files of an attack in TrojanZoo's folders: a mark of one opaque and one half opaque column."""
    folder = root / "attack" / "image" / dataset / "resnet18_comp" / "badnet"
    folder.mkdir(parents=True)
    mark = np.zeros((4, 3, 4), dtype=np.float32)
    mark[:3], mark[3, :, 0], mark[3, :, 3] = 1.0, 1.0, 0.5
    np.save(folder / f"{stem}.npy", mark)
    torch.manual_seed(0)
    torch.save(build_model("trojanzoo:resnet18_comp", num_classes=4).state_dict(), folder / f"{stem}.pth")
    return folder / f"{stem}.pth"


def images(root: Path) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)
    np.savez(root / "test.npz", x=pixels, y=np.arange(COUNT) % 4)
    return pixels
