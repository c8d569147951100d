"""The networks of the input-aware attack."""

from __future__ import annotations

import numpy as np
import torch
from lively_iab import SHAPE, lively, tiny
from torch import nn

from clp_plugin.adapters.builtin.attacks.iab.nets import UShaped, diversity, scaled, sharp_mask


def test_the_networks_are_three_halvings_and_three_doublings() -> None:
    made = UShaped(3, 1, 4)
    kinds = [type(layer).__name__ for layer in made.layers]
    assert (kinds.count("MaxPool2d"), kinds.count("Upsample"), kinds.count("Conv2d")) == (3, 3, 13)
    assert kinds[-1] == "BatchNorm2d"
    widths = [layer.out_channels for layer in made.layers if isinstance(layer, nn.Conv2d)]
    assert widths == [4, 4, 8, 8, 16, 16, 16, 16, 8, 8, 4, 4, 1]
    with torch.no_grad():
        assert made.eval()(torch.zeros(2, 3, 16, 24)).shape == (2, 1, 16, 24)


def test_the_seed_decides_the_weights_of_both_networks_each_its_own() -> None:
    first, other = (tiny(seed=seed).arrays() for seed in (1, 2))
    weights = [name for name in first if first[name].ndim == 4]
    assert weights
    assert not any(np.array_equal(first[name], other[name]) for name in weights)
    assert not np.array_equal(first["generator.layers.0.weight"], first["mask.layers.0.weight"])


def test_what_the_networks_are_given_is_standardised() -> None:
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-2.0, 2.0]
    with torch.no_grad():
        masks = sharp_mask(lively().mask.eval(), torch.zeros(1, *SHAPE, dtype=torch.uint8))
    assert masks.shape == (1, 1, 8, 16)


def test_the_gradient_of_diversity_is_finite_where_outputs_agree() -> None:
    made = torch.zeros(2, 1, 4, 4, requires_grad=True)
    diversity(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), made, made.detach()).backward()
    assert made.grad is not None
    assert torch.isfinite(made.grad).all()
