"""WaNet: the warp itself, its part in the training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attack_scenes import scene_of
from numpy.typing import NDArray

from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.wanet import WaNet, WarpHook
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.errors import ConfigError, RecordError

SHAPE = (3, 9, 13)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)


def slow_warp(image: NDArray[np.uint8], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear sampling of ``(C, H, W)`` at ``(H, W, 2)`` points whose -1 and 1 are the outermost pixels' centres."""
    channels, height, width = image.shape
    found = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            x = min(max((grid[row, column, 0] + 1) / 2 * (width - 1), 0.0), width - 1.0)
            y = min(max((grid[row, column, 1] + 1) / 2 * (height - 1), 0.0), height - 1.0)
            left, top = min(math.floor(x), width - 2), min(math.floor(y), height - 2)
            for channel in range(channels):
                for down in (0, 1):
                    for right in (0, 1):
                        weight = abs(1 - down - (y - top)) * abs(1 - right - (x - left))
                        found[channel, row, column] += weight * image[channel, top + down, left + right]
    return found


def slow_grid(attack: WaNet) -> NDArray[np.float64]:
    height, width = attack.field.shape[:2]
    grid = np.zeros((height, width, 2))
    for row in range(height):
        for column in range(width):
            x = -1 + 2 * column / (width - 1) + attack.strength * float(attack.field[row, column, 0]) / width
            y = -1 + 2 * row / (height - 1) + attack.strength * float(attack.field[row, column, 1]) / height
            grid[row, column] = min(max(x, -1), 1), min(max(y, -1), 1)
    return grid


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_poisoning_is_bilinear_sampling_at_the_displaced_points(pixels: NDArray[np.uint8], strength: float) -> None:
    attack = WaNet.create(SHAPE, seed=1, strength=strength)
    exact = np.stack([slow_warp(image, slow_grid(attack)) for image in pixels])
    assert np.abs(exact - pixels).max() > 5
    assert np.abs(attack.poison(pixels) - exact).max() <= 0.5 + 1e-2


def test_strength_zero_leaves_images_as_they_are(pixels: NDArray[np.uint8]) -> None:
    assert np.array_equal(WaNet.create(SHAPE, seed=1, strength=0).poison(pixels), pixels)


def test_a_strength_of_2_moves_a_pixel_by_about_its_own_width() -> None:
    grid = WaNet.create((3, 32, 32), seed=0, strength=2.0).grid()
    still = WaNet.create((3, 32, 32), seed=0, strength=0.0).grid()
    moved = (grid - still).abs() * 31 / 2
    assert 0.5 < float(moved.mean()) < 1.5


def test_the_field_passes_through_its_control_points_of_mean_magnitude_one() -> None:
    field = WaNet.create((1, 7, 10), seed=5).field  # corners, and every second row, every third column between them
    points = field[::2, ::3]
    assert points.shape == (4, 4, 2)
    assert np.abs(points).mean() == pytest.approx(1, abs=1e-5)


def test_long_sets_are_worked_through_in_parts(pixels: NDArray[np.uint8]) -> None:
    attack = WaNet.create(SHAPE, seed=1, strength=2.0)
    once = attack.poison(pixels)
    assert np.array_equal(attack.poison(np.concatenate([pixels] * 300)), np.concatenate([once] * 300))


def roles_of(attack: WaNet, scene: Scene) -> tuple[set[int], set[int]]:
    hook = attack.hook(scene)
    return set((hook.roles == 1).nonzero().flatten().tolist()), set((hook.roles == 2).nonzero().flatten().tolist())


def test_twice_as_many_others_as_poisoned_ones_get_noise() -> None:
    attack, poisoned = WaNet.create((3, 8, 8), seed=0), [1, 4, 5, 20]
    warped, noisy = roles_of(attack, scene_of(30, poisoned))
    assert warped == set(poisoned)
    assert len(noisy) == 8
    assert not warped & noisy
    assert roles_of(attack, scene_of(30, poisoned)) == (warped, noisy)
    assert roles_of(attack, scene_of(30, poisoned, seed=1))[1] != noisy


def test_where_there_are_fewer_others_all_of_them_get_noise() -> None:
    warped, noisy = roles_of(WaNet.create((3, 8, 8), seed=0), scene_of(6, [0, 1, 2, 3]))
    assert (warped, noisy) == ({0, 1, 2, 3}, {4, 5})


def hooked(hook: WarpHook, scene: Scene, seed: int) -> Batch:
    indices = torch.arange(len(scene.images))
    batch = Batch(torch.from_numpy(scene.images.pixels), torch.from_numpy(scene.images.labels))
    return hook(batch, indices, torch.Generator().manual_seed(seed))


def test_a_batch_holds_warped_noisy_and_clean_images_and_all_labels_stay() -> None:
    scene, attack = scene_of(12, [2, 7]), WaNet.create((3, 8, 8), seed=0, strength=1.0)
    before = scene.images.pixels.copy()
    hook = attack.hook(scene)
    found = hooked(hook, scene, 0)
    roles = hook.roles.numpy()
    assert np.array_equal(scene.images.pixels, before)
    assert np.array_equal(found.labels.numpy(), scene.images.labels)
    assert np.array_equal(found.images.numpy()[roles == 1], attack.poison(before[roles == 1]))
    assert np.array_equal(found.images.numpy()[roles == 0], before[roles == 0])
    assert (found.images.numpy()[roles == 2] != attack.poison(before[roles == 2])).any(axis=(1, 2, 3)).all()


def test_the_noise_is_fresh_in_every_batch_and_follows_the_generator() -> None:
    scene, attack = scene_of(12, [2, 7]), WaNet.create((3, 8, 8), seed=0)
    hook = attack.hook(scene)
    noisy = hook.roles == 2
    first, again, other = (hooked(hook, scene, seed).images[noisy] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).flatten(1).any(1).all()


@pytest.mark.parametrize("noise", [1.0, 1.5])
def test_noise_moves_each_point_of_each_image_by_so_many_half_pixels_at_most(noise: float) -> None:
    hook = WaNet.create(SHAPE, seed=0, strength=0, noise=noise).hook(scene_of(6, [0], shape=SHAPE))
    grids = hook._noisy_grids(50, torch.Generator().manual_seed(0))
    moved = (grids - hook.grid)[:, 2:-2, 2:-2] / noise * torch.tensor([SHAPE[2], SHAPE[1]])
    assert 0.98 < float(moved.abs().max()) <= 1 + 1e-5
    assert float(moved.abs().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(grids.abs().max()) <= 1
    assert not torch.equal(grids[0], grids[1])


def test_without_cross_ratio_no_image_gets_noise() -> None:
    assert roles_of(WaNet.create((3, 8, 8), seed=0, cross_ratio=0), scene_of(6, [1])) == ({1}, set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 1}, "whole grid_size of at least 2, found 1"),
        ({"grid_size": 2.5}, "whole grid_size of at least 2, found 2.5"),
        ({"strength": -0.5}, "strength of at least 0, found -0.5"),
        ({"strength": math.nan}, "finite strength of at least 0, found nan"),
        ({"strength": "1"}, "wrong type"),
        ({"noise": -1}, "noise of at least 0, found -1"),
        ({"cross_ratio": -1}, "cross_ratio of at least 0, found -1"),
        ({"cross_ratio": math.inf}, "cross_ratio of at least 0, found inf"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("wanet", SHAPE, seed=0, options=options, attack_type=WaNet)


@pytest.mark.parametrize("key", ["strength", "noise", "cross_ratio"])
def test_a_damaged_number_is_told(key: str) -> None:
    attack = WaNet.create(SHAPE, seed=5)
    with pytest.raises(RecordError, match=f"wanet trigger: expected a finite {key} of at least 0"):
        WaNet.from_json({**attack.to_json(), key: -1.0}, attack.arrays())
