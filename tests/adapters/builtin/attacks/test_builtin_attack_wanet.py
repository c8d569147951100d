"""WaNet: the warp itself, its part in the training, and what a record keeps of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from small_attack import run_attack, small_attack
from torch import Tensor, nn

from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.wanet import WaNet, WarpHook
from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.record_files import read_description, read_trigger
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import ArrayImages
from clp_plugin.types import TargetRule

SHAPE = (3, 9, 13)
RECIPE = Recipe(epochs=3, lr=0.05, batch_size=8, crop_padding=2, flip=True, precision="float32")
SETTINGS = small_attack("wanet", crop_padding=1, attack_options={"strength": 2.0})


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build("resnet18", num_classes=3, width=4, blocks=(1, 1))


def scene_of(count: int, poisoned: list[int], *, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> Scene:
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 3).astype(np.int64)
    images = ArrayImages(rng.integers(0, 256, (count, *shape), dtype=np.uint8), labels, (0.5,) * 3, (0.25,) * 3)
    chosen = np.array(poisoned, dtype=np.int64)
    return Scene(images, chosen, TargetRule("all_to_one", 3, 0), network, RECIPE, seed)


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


def test_originals_are_left_alone_and_long_sets_are_worked_through(pixels: NDArray[np.uint8]) -> None:
    attack, before = WaNet.create(SHAPE, seed=1, strength=2.0), pixels.copy()
    once = attack.poison(pixels)
    assert np.array_equal(pixels, before)
    assert np.array_equal(attack.poison(np.concatenate([pixels] * 300)), np.concatenate([once] * 300))
    assert attack.poison(pixels[:0]).shape == (0, *SHAPE)


def test_the_seed_decides_the_field_and_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (WaNet.create(SHAPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(first.field, again.field)
    assert not np.allclose(first.field, other.field)


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


class _KilledError(Exception):
    pass


class _Killing(WarpHook):
    """Stops a training in its n-th batch."""

    left = 10**6

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        self.left -= 1
        if self.left < 0:
            raise _KilledError
        return super().__call__(batch, indices, generator)


@pytest.mark.parametrize("batches", [1, 4])
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, batches: int) -> None:
    scene = scene_of(27, [0, 3, 9, 15])
    made = WaNet.create((3, 8, 8), seed=0, strength=2.0).hook(scene)
    whole, killed, resumed, plain = (network() for _ in range(4))
    train(whole, scene.images, RECIPE, seed=0, hook=made)
    kill, state = _Killing(made.grid, made.noise, made.roles), tmp_path / "state.pt"
    kill.left = batches
    with pytest.raises(_KilledError):
        train(killed, scene.images, RECIPE, seed=0, checkpoint=state, checkpoint_seconds=0, hook=kill)
    train(resumed, scene.images, RECIPE, seed=0, checkpoint=state, hook=made)
    train(plain, scene.images, RECIPE, seed=0)
    ends = [list(model.state_dict().values()) for model in (whole, resumed, plain)]
    assert all(torch.equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ends[0], ends[2], strict=True))


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
        ({"size": 3}, "unknown option of attack 'wanet' 'size'; known: cross_ratio, grid_size, noise, strength"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("wanet", SHAPE, seed=0, options=options, attack_type=WaNet)


def test_images_of_another_size_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match=r"field is for \(8, 8\), the images are \(9, 13\)"):
        WaNet.create((3, 8, 8), seed=0).poison(pixels)


def test_read_back_from_json_and_arrays_it_poisons_alike(pixels: NDArray[np.uint8]) -> None:
    attack = WaNet.create(SHAPE, seed=5, strength=1.5)
    again = WaNet.from_json(json.loads(json.dumps(attack.to_json())), attack.arrays())
    assert attack.arrays()["field"].dtype == np.float32
    assert np.array_equal(attack.poison(pixels), again.poison(pixels))
    assert (again.noise, again.cross_ratio) == (attack.noise, attack.cross_ratio)


def test_damaged_json_and_arrays_are_told() -> None:
    attack = WaNet.create(SHAPE, seed=5)
    good, arrays = attack.to_json(), attack.arrays()
    for key in good:
        for damaged in ({**good, key: None}, {**good, key: -1.0}, {name: good[name] for name in good if name != key}):
            with pytest.raises(RecordError, match=f"expected a finite {key} of at least 0"):
                WaNet.from_json(damaged, arrays)
    field = arrays["field"]
    for bad in (None, field[..., :1], field[0], field.astype(np.float64), np.full_like(field, np.nan)):
        with pytest.raises(RecordError, match="expected the array 'field'"):
            WaNet.from_json(good, {"field": bad} if bad is not None else {})


@pytest.mark.parametrize("target", [3, None])
def test_a_record_opens_and_its_trigger_poisons_again(tmp_path: Path, target: int | None) -> None:
    settings = replace(SETTINGS, target=target)
    record = BuiltinAdapter().open(run_attack(settings, tmp_path / "x", attack_type=WaNet))
    assert record.provenance.attack == "wanet"
    stored = load_file(tmp_path / "x" / "images.safetensors")
    again = WaNet.from_json(read_description(tmp_path / "x").trigger, read_trigger(tmp_path / "x"))
    clean = stored["clean.pixels"][stored["triggered.clean_index"]]
    assert np.array_equal(again.poison(clean), stored["triggered.pixels"])
    assert not np.array_equal(clean, stored["triggered.pixels"])
