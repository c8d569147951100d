"""Input-aware attacks whose networks are not trained, and what they put on images by the formulas of the paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from attack_scenes import RECIPE, scene_of
from numpy.typing import NDArray
from torch import Tensor, nn

from clp_plugin.adapters.builtin.attacks.iab.attack import IAB
from clp_plugin.adapters.builtin.attacks.iab.nets import scaled
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.recipe import Recipe

SHAPE = (3, 8, 16)


def coarse_scene(count: int, poisoned: list[int], *, recipe: Recipe = RECIPE) -> Scene:
    return scene_of(count, poisoned, shape=SHAPE, block=4, recipe=recipe)


def tiny(*, seed: int = 0, **options: Any) -> IAB:
    return IAB.create(SHAPE, seed=seed, **{"width": 2, "mask_epochs": 2, **options})


def lively(*, seed: int = 0, **options: Any) -> IAB:
    """As ``tiny``, with the statistics of images in its norms: masks and patterns then differ from pixel to pixel."""
    attack = tiny(seed=seed, **options)
    images = scaled(torch.from_numpy(coarse_scene(32, []).images.pixels))
    for net in (attack.generator, attack.mask):
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            net.train()(images)
        for norm in norms:
            norm.momentum = 0.05
        net.eval()
    return attack


def outputs(attack: IAB, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Patterns in [0, 1] and masks of the networks in eval mode, the formulas of the paper written out."""
    inputs = (torch.from_numpy(images).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = [net.eval().layers(inputs).double().numpy() for net in (attack.generator, attack.mask)]
    pattern, mask = (np.tanh(logit) / 2 + 0.5 for logit in logits)
    return pattern, np.tanh(20 * mask - 10) / 2 + 0.5


def slow_diversity(images: Tensor, others: Tensor, made: Tensor, made_of_others: Tensor) -> float:
    made, made_of_others = made.detach(), made_of_others.detach()
    ratios = []
    for index in range(len(images)):
        apart = math.sqrt(float(((images[index] - others[index]).double() ** 2).mean()))
        made_apart = math.sqrt(float(((made[index] - made_of_others[index]).double() ** 2).mean()))
        ratios.append(apart / (made_apart + 1e-7))
    return sum(ratios) / len(ratios)
