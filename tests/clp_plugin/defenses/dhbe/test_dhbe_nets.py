"""The generators of DHBE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from clp_plugin.defenses.dhbe import nets


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (2, (8, 8))),
        ((64, 64), (3, (8, 8))),
        ((96, 96), (4, (6, 6))),
        ((224, 224), (5, (7, 7))),
        ((28, 28), (2, (7, 7))),
        ((12, 12), (1, (6, 6))),
        ((8, 8), (0, (8, 8))),
        ((3, 3), (0, (3, 3))),
        ((9, 9), (1, (5, 5))),
        ((33, 33), (3, (5, 5))),
        ((20, 36), (3, (3, 5))),
    ],
)
def test_the_first_map_has_five_to_eight_pixels_a_side(size: tuple[int, int], expected: Any) -> None:
    assert nets.start_of(*size) == expected


def test_every_size_from_five_on_starts_in_five_to_eight_and_gets_large_enough() -> None:
    for side in range(5, 700):
        doublings, (height, width) = nets.start_of(side, side)
        assert 5 <= height == width <= 8
        assert height << doublings >= side
        if side % 2**doublings == 0:
            assert height << doublings == side


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 32, 32), (1, 28, 28), (3, 33, 33), (2, 20, 36), (3, 6, 6)])
def test_generated_images_have_the_right_size_and_are_normalized_over_the_batch(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    images = nets.ImageGenerator(shape, 7, 4)(torch.randn(16, 7))
    assert images.shape == (16, *shape)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(images.var((0, 2, 3), correction=0), torch.ones(shape[0]), atol=5e-3)
    assert not torch.equal(images[0], images[1])


def test_patches_are_of_the_right_size_and_within_one_of_zero() -> None:
    torch.manual_seed(0)
    patches = nets.PatchGenerator(3, 5, 7, 4)(10 * torch.randn(16, 7))
    assert patches.shape == (16, 3, 5, 5)
    assert patches.abs().max() <= 1
    assert patches.std() > 0.3


def test_layers_are_the_published_ones_at_32_pixels() -> None:
    layers = list(nets.ImageGenerator((3, 32, 32), 256, 64).modules())
    convolutions = [(m.in_channels, m.out_channels) for m in layers if isinstance(m, nn.Conv2d)]
    assert convolutions == [(128, 128), (128, 64), (64, 3)]
    assert [m.negative_slope for m in layers if isinstance(m, nn.LeakyReLU)] == [0.2, 0.2]
