"""CLA: perturbed images of the target class, and a patch in each corner."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_attack import small_attack
from torch.nn import functional as F  # noqa: N812

from clp_plugin.adapters.builtin.attack import initial_model
from clp_plugin.adapters.builtin.attacks import cla as cla_module
from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.cla import CLA
from clp_plugin.adapters.builtin.digits import compose
from clp_plugin.adapters.builtin.poisoning import poisoned_training_set
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages, normalize
from clp_plugin.types import TargetRule

SHAPE = (3, 16, 16)
MEAN, STD = (0.5, 0.4, 0.6), (0.25, 0.3, 0.2)
TARGET = 3
SETTINGS = small_attack("cla", epochs=2, target=TARGET)


@pytest.fixture(scope="module")
def scene() -> Scene:
    pixels, labels = compose(200, "train", seed=0)
    # Every other pixel: a quarter of the work.
    images = ArrayImages(np.ascontiguousarray(pixels[:, :, ::2, ::2]), labels, MEAN, STD)
    poisoned = np.flatnonzero(images.labels == TARGET)
    rule = TargetRule("all_to_one", 10, TARGET)
    return Scene(images, poisoned, rule, lambda: initial_model(SETTINGS, 10), SETTINGS.recipe, seed=0)


@pytest.fixture(scope="module")
def prepared(scene: Scene) -> CLA:
    return CLA.create(SHAPE, seed=0).prepare(scene)


@pytest.fixture(scope="module")
def originals(scene: Scene) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = scene.images.pixels[scene.poisoned]
    return pixels


@pytest.fixture(scope="module")
def perturbed(prepared: CLA, originals: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return prepared.perturb(originals)


def without_corners(pixels: NDArray[np.uint8], size: int = 3) -> NDArray[np.uint8]:
    """The pixels with each corner blacked out, pixel by pixel."""
    blacked = pixels.copy()
    height, width = pixels.shape[2:]
    for row in range(height):
        for column in range(width):
            if min(row, height - 1 - row) < size and min(column, width - 1 - column) < size:
                blacked[:, :, row, column] = 0
    return blacked


def test_the_patch_is_in_all_four_corners_and_nowhere_else() -> None:
    attack = CLA.create((3, 10, 12), seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 10, 12), dtype=np.uint8)
    before, poisoned = pixels.copy(), attack.poison(pixels)
    assert np.array_equal(pixels, before)
    for rows, columns in [((0, 3), (0, 3)), ((0, 3), (9, 12)), ((7, 10), (0, 3)), ((7, 10), (9, 12))]:
        assert (poisoned[:, :, slice(*rows), slice(*columns)] == attack.patch).all()
    assert np.array_equal(without_corners(poisoned), without_corners(pixels))


def test_no_pixel_is_further_than_eps_from_its_own(
    originals: NDArray[np.uint8], perturbed: NDArray[np.uint8], prepared: CLA
) -> None:
    distance = np.abs(perturbed.astype(int) - originals.astype(int))
    assert distance.max() == 12
    assert distance.mean() > 6
    small = replace(prepared, eps=1).perturb(originals)
    assert np.abs(small.astype(int) - originals.astype(int)).max() == 1


@pytest.mark.parametrize("stamp", [True, False])
def test_training_images_are_the_perturbed_ones_and_the_corners_may_come_later(
    originals: NDArray[np.uint8], perturbed: NDArray[np.uint8], prepared: CLA, scene: Scene, stamp: bool
) -> None:
    labels = np.full(len(originals), TARGET)
    clean = ArrayImages(originals, labels, scene.images.mean, scene.images.std)
    training = poisoned_training_set(clean, prepared, scene.rule, np.arange(len(originals)), stamp=stamp)
    assert np.array_equal(training.pixels, prepared.poison(perturbed) if stamp else perturbed)
    assert np.array_equal(training.labels, labels)


def test_the_clean_network_recognises_perturbed_images_worse(
    originals: NDArray[np.uint8], perturbed: NDArray[np.uint8], prepared: CLA, scene: Scene
) -> None:
    noise = np.random.default_rng(0).choice([-12, 12], size=originals.shape)
    noisy = np.clip(originals + noise, 0, 255).astype(np.uint8)
    model, labels = scene.clean_model(), torch.full((len(originals),), TARGET)
    with torch.no_grad():
        clean, after_noise, attacked = (
            float(F.cross_entropy(model(normalize(pixels, MEAN, STD)), labels))
            for pixels in (originals, noisy, perturbed)
        )
    assert attacked > clean + 0.1
    # Noise of the same height changes the loss far less: the direction matters.
    assert attacked - clean > 3 * abs(after_noise - clean)


def test_one_step_without_room_follows_the_sign_of_a_gradient_taken_by_differences(
    originals: NDArray[np.uint8], prepared: CLA, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cla_module.Surrogate, "starts", lambda self, pixels, eps: torch.zeros(pixels.shape))
    image = originals[:1].clip(20, 235)
    moved = replace(prepared, steps=1).perturb(image).astype(int) - image.astype(int)
    model = scene.clean_model().double()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))

    def loss(pixels: NDArray[np.float64]) -> float:
        inputs = torch.from_numpy((pixels / 255 - mean) / std)
        with torch.no_grad():
            return float(F.cross_entropy(model(inputs), torch.tensor([TARGET])))

    for channel, row, column in [(0, 5, 7), (1, 8, 8), (2, 10, 5), (0, 7, 9), (1, 14, 2)]:
        up, down = image.astype(np.float64), image.astype(np.float64)
        up[0, channel, row, column] += 0.01
        down[0, channel, row, column] -= 0.01
        assert moved[0, channel, row, column] == 2 * np.sign(loss(up) - loss(down))


def test_the_seed_reproduces_the_perturbation_and_the_global_generators_stay(
    originals: NDArray[np.uint8], perturbed: NDArray[np.uint8], prepared: CLA, scene: Scene
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = CLA.create(SHAPE, seed=0).prepare(scene)
    assert np.array_equal(again.perturb(originals), perturbed)
    assert torch.equal(torch.rand(1), expected)
    assert prepared.surrogate is not None
    other = replace(prepared, surrogate=replace(prepared.surrogate, seed=1))
    assert not np.array_equal(other.perturb(originals), perturbed)


def test_random_starts_fill_the_ball_and_differ_between_images(originals: NDArray[np.uint8], prepared: CLA) -> None:
    assert prepared.surrogate is not None
    starts = prepared.surrogate.starts(originals, 12).numpy()
    assert 11.9 < np.abs(starts).max() <= 12
    assert abs(starts.mean()) < 0.3
    assert not np.array_equal(starts[0], starts[1])


def test_an_image_is_perturbed_alike_wherever_it_stands(
    originals: NDArray[np.uint8], perturbed: NDArray[np.uint8], prepared: CLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cla_module, "_CHUNK", 4)
    backwards = prepared.perturb(originals[::-1].copy())[::-1]
    # Another batch may sum in another order, and a gradient next to 0 then change its sign.
    assert (backwards == perturbed).mean() > 0.999


def test_the_network_is_no_part_of_what_is_printed(prepared: CLA) -> None:
    assert "surrogate" not in repr(prepared)


def test_perturbing_without_a_network_is_told(originals: NDArray[np.uint8], prepared: CLA) -> None:
    with pytest.raises(ConfigError, match=r"call prepare\(scene\) first"):
        CLA.create(SHAPE, seed=0).perturb(originals)
    again = CLA.from_json(json.loads(json.dumps(prepared.to_json())), {})
    assert np.array_equal(again.poison(originals), prepared.poison(originals))
    with pytest.raises(ConfigError, match=r"call prepare\(scene\) first"):
        again.perturb(originals)


def test_all_to_all_is_told(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="one target class; give it with --target"):
        CLA.create(SHAPE, seed=0).prepare(replace(scene, rule=TargetRule("all_to_all", 10)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9}, "cla: patches of size 9 do not fit into the four corners of 16x16 images; give .* 1 to 8"),
        ({"size": 0}, "size 0"),
        ({"size": "3"}, "wrong type"),
        ({"eps": 0}, "cla: expected eps of at least 1, found 0"),
        ({"eps": 12 / 255}, "expected eps of at least 1, found 0.047.*; give a whole number"),
        ({"eps": 256}, "found 256 and 2"),
        ({"step": 0}, r"a step in \(0, 255\], found 12 and 0"),
        ({"steps": 2.5}, "expected steps of at least 1, found 2.5"),
        ({"clean_epochs": 0}, "expected clean_epochs of at least 1"),
    ],
)
def test_impossible_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("cla", SHAPE, seed=0, options=options, attack_type=CLA)
