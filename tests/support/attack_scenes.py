"""What an attacker has at hand, small enough that preparing and training take a moment."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.images import ArrayImages
from clp_plugin.types import TargetRule

RECIPE = Recipe(epochs=3, lr=0.05, batch_size=8, crop_padding=2, flip=True, precision="float32")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build("resnet18", num_classes=3, width=4, blocks=(1, 1))


def scene_of(
    count: int, poisoned: list[int], *, shape: tuple[int, int, int] = (3, 8, 8), block: int = 1, seed: int = 0,
    recipe: Recipe = RECIPE,
) -> Scene:  # fmt: skip
    """``count`` images of three classes in turn, in squares of one colour, ``block`` pixels wide; class 0 is the target."""
    channels, height, width = shape
    coarse = np.random.default_rng(0).integers(
        0, 256, (count, channels, height // block, width // block), dtype=np.uint8
    )
    labels = (np.arange(count) % 3).astype(np.int64)
    images = ArrayImages(coarse.repeat(block, axis=2).repeat(block, axis=3), labels, (0.5,) * 3, (0.25,) * 3)
    return Scene(images, np.array(poisoned, dtype=np.int64), TargetRule("all_to_one", 3, 0), network, recipe, seed)
