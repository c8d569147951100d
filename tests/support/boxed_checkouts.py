"""A folder that looks like a checkout of backdoor-toolbox after an attack, in miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clp_plugin.networks.architectures import build_model

CONFIG = """
import os
from utils import resnet, vgg
raise SystemExit("nobody may run this")
target_class = {'cifar10': 3, 'gtsrb': 2}
poison_seed = 0
trigger_default = {'cifar10': {'badnet': 'patch.png', 'badnet_all_to_all': 'patch.png', 'blend': 'kitty.png', 'SIG': 'none'}}
arch = {'cifar10': resnet.ResNet18, 'gtsrb': vgg.vgg16_bn}
"""
TARGET = 3
ALPHA = 0.2


def checkout(root: Path) -> Path:
    """The checkout, with clean splits of 20 and 6 images and two triggers: one with black pixels and no mask, one with all."""
    for folder in ("other_defenses_tool_box", "poison_tool_box", "triggers"):
        (root / folder).mkdir(parents=True)
    (root / "config.py").write_text(CONFIG)
    (root / "other_defense.py").write_text("")
    rng = np.random.default_rng(0)
    for split, count, labels in (("test_split", 20, "labels"), ("clean_split", 6, "clean_labels")):
        data = root / "clean_set" / "cifar10" / split / "data"
        data.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data / f"{number}.png")
        torch.save(torch.arange(count) % 10, data.parent / labels)
    patch = np.zeros((32, 32, 3), dtype=np.uint8)
    patch[-3:, -3:, 1] = 200
    Image.fromarray(patch).save(root / "triggers" / "patch.png")
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "triggers" / "kitty.png")
    return root


def poisoned_set(root: Path, name: str) -> Path:
    """A poisoned set and the network that was trained on it."""
    folder = root / "poisoned_train_set" / "cifar10" / name
    folder.mkdir(parents=True)
    torch.save(torch.zeros(3, dtype=torch.int64), folder / "labels")
    torch.save([0, 2], folder / "poison_indices")
    torch.manual_seed(0)
    network = build_model("builtin:resnet18", num_classes=10)
    torch.save(network.state_dict(), folder / "full_base_aug_seed=2333.pt")
    torch.save({"epoch": 1}, folder / "meta_info_full_base_aug_seed=2333.pt")
    return folder


def test_images(root: Path) -> NDArray[np.uint8]:
    """The test images ``(20, 3, 32, 32)``, read by hand."""
    data = root / "clean_set" / "cifar10" / "test_split" / "data"
    return np.stack([np.asarray(Image.open(data / f"{n}.png")).transpose(2, 0, 1) for n in range(20)])
