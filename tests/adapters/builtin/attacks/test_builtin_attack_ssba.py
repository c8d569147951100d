"""SSBA: what the encoder hides, and what of it a record keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.ssba.attack import SSBA
from clp_plugin.adapters.builtin.attacks.ssba.nets import Decoder, HidingRecipe, _HidingTraining, learn_to_hide
from clp_plugin.adapters.builtin.digits import Split, compose
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import ArrayImages
from clp_plugin.types import TargetRule

SHAPE = (3, 8, 8)
OPTIONS: dict[str, Any] = {"bits": 3, "width": 4, "epochs": 20, "batch_size": 16, "lr": 1e-2}
Pixels = NDArray[np.uint8]


def pictures(split: Split) -> Pixels:
    """Digits over photographs, every fourth pixel."""
    return np.ascontiguousarray(compose(64, split, seed=0)[0][:, :, ::4, ::4])


@pytest.fixture(scope="module")
def seen() -> Pixels:
    return pictures("train")


@pytest.fixture(scope="module")
def unseen() -> Pixels:
    return pictures("test")


def scene(pixels: Pixels, **changes: Any) -> Scene:
    images = ArrayImages(pixels, np.arange(len(pixels)) % 3, (0.5,) * 3, (0.25,) * 3)
    rule = TargetRule("all_to_one", 3, 0)
    return replace(Scene(images, np.array([1]), rule, torch.nn.Identity, Recipe(epochs=1), seed=0), **changes)


def taught(seen: Pixels, **changes: Any) -> tuple[SSBA, Decoder]:
    attack = SSBA.create(SHAPE, seed=0, **(OPTIONS | changes))
    return attack, learn_to_hide(attack.encoder, seen, attack.recipe, seed=0)


@pytest.fixture(scope="module")
def pair(seen: Pixels) -> tuple[SSBA, Decoder]:
    return taught(seen)


def read(decoder: Decoder, pixels: Pixels) -> NDArray[np.bool_]:
    with torch.inference_mode():
        bits: NDArray[np.bool_] = (decoder(torch.from_numpy(pixels).float() / 255) > 0).numpy()
    return bits


def residual(attack: SSBA, pixels: Pixels) -> NDArray[np.int64]:
    drawn: NDArray[np.int64] = attack.poison(pixels).astype(np.int64) - pixels
    return drawn


def test_the_decoder_reads_the_secret_in_images_that_nobody_trained_on(
    pair: tuple[SSBA, Decoder], unseen: Pixels
) -> None:
    attack, decoder = pair
    assert (read(decoder, attack.poison(unseen)) == attack.secret).mean() > 0.95
    other = replace(attack, secret=1 - attack.secret)
    assert (read(decoder, other.poison(unseen)) == other.secret).mean() > 0.95


def test_the_residual_falls_when_the_image_weighs_more(pair: tuple[SSBA, Decoder], seen: Pixels) -> None:
    light, heavy = pair[0], taught(seen, image_weight=200.0)[0]
    assert np.abs(residual(heavy, seen)).mean() < 0.7 * np.abs(residual(light, seen)).mean()


def test_the_decoder_sees_noise_of_the_strength_asked_for(seen: Pixels) -> None:
    calm, noisy = (
        _HidingTraining(
            SSBA.create(SHAPE, seed=0, **OPTIONS).encoder, seen, HidingRecipe(noise=noise), 0, torch.device("cpu")
        )
        for noise in (0.0, 51.0)
    )
    losses = [float(lesson.step()) for lesson in (calm, noisy)]
    assert losses[0] != losses[1]
    grey = torch.full((64, *SHAPE), 0.5)
    assert calm.disturbed(grey) is grey
    assert float(noisy.disturbed(grey).mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noisy.disturbed(grey).std()) == pytest.approx(0.2, rel=0.05)


def test_the_triggers_of_two_images_differ(pair: tuple[SSBA, Decoder], unseen: Pixels) -> None:
    drawn = residual(pair[0], unseen)
    inside = (unseen > 60) & (unseen < 195)  # away from black and white, where the image is clamped
    both = inside[0] & inside[1]
    assert both.sum() > 20
    assert (drawn[0] != drawn[1])[both].mean() > 0.2


def test_an_image_is_poisoned_alike_in_whatever_company(pair: tuple[SSBA, Decoder], unseen: Pixels) -> None:
    many = np.concatenate([unseen] * 5)
    poisoned = pair[0].poison(many).astype(np.int64)
    alone = np.concatenate([pair[0].poison(unseen[i : i + 1]) for i in range(len(unseen))])
    # Sums in another order may round to the neighbouring level.
    assert np.abs(poisoned - np.concatenate([alone] * 5)).max() <= 1
    assert (poisoned == np.concatenate([alone] * 5)).mean() > 0.99


def test_sides_that_cannot_be_halved_and_one_channel_work() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 1, 7, 9), dtype=np.uint8)
    attack = SSBA.create((1, 7, 9), seed=0, bits=2, width=2, epochs=1)
    prepared = attack.prepare(scene(np.repeat(grey, 3, axis=1)[:, :1]))
    assert prepared.poison(grey).shape == grey.shape


def test_progress_counts_up_to_the_end(seen: Pixels) -> None:
    told: list[tuple[float, float, float]] = []
    attack = SSBA.create(SHAPE, seed=0, **(OPTIONS | {"epochs": 2}))
    attack.prepare(scene(seen, progress=lambda epoch, epochs, loss, left: told.append((epoch, epochs, left))))
    assert told[-1] == (2, 2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits to be a whole number from 1 to 1024, found 0"),
        ({"bits": 2.5}, "bits to be a whole number from 1 to 1024, found 2.5"),
        ({"width": True}, "width to be a whole number from 1 to 1024, found True"),
        ({"epochs": 0}, "epochs to be a whole number from 1 on, found 0"),
        ({"batch_size": 1}, "batch_size to be a whole number from 2 on, found 1"),
        ({"lr": 0.0}, "lr to be above 0, found 0.0"),
        ({"lr": float("nan")}, "lr to be above 0, found nan"),
        ({"image_weight": -1.0}, "image_weight to be a number from 0 on, found -1.0"),
        ({"noise": -1.0}, "noise to be a number of levels from 0 on, found -1.0"),
        ({"lr": "fast"}, "wrong type"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("ssba", SHAPE, seed=0, options=options, attack_type=SSBA)


def test_images_that_do_not_fit_are_told(seen: Pixels) -> None:
    attack = SSBA.create((3, 8, 12), seed=0, **OPTIONS)
    with pytest.raises(ConfigError, match=r"images of \(3, 8, 12\), found \(3, 8, 8\)"):
        attack.poison(seen)
    with pytest.raises(ConfigError, match=r"images of \(3, 8, 12\), found \(3, 8, 8\)"):
        attack.prepare(scene(seen))
    with pytest.raises(ConfigError, match="at least 2 training images, found 1"):
        SSBA.create(SHAPE, seed=0, **OPTIONS).prepare(scene(seen[:1]))


def test_divergence_is_told(seen: Pixels) -> None:
    attack = SSBA.create(SHAPE, seed=0, **(OPTIONS | {"lr": 1e30, "epochs": 1}))
    with pytest.raises(ConfigError, match=r"diverged; lower its lr \(found 1e\+30\)"):
        attack.prepare(scene(seen))


@pytest.mark.parametrize(
    "change",
    [
        {"secret": None},
        {"secret": []},
        {"secret": [0, 2, 1]},
        {"secret": [0, 1, 1, 0]},  # not as long as the encoder's
        {"input_shape": [3, 16]},
        {"input_shape": [3, 16, 0]},
        {"input_shape": [1, 8, 8]},
        {"input_shape": [2**31, 8, 8]},
        {"width": None},
        {"width": 10**9},
    ],
)
def test_damaged_json_is_told(change: dict[str, Any]) -> None:
    attack = SSBA.create(SHAPE, seed=0, **OPTIONS)
    with pytest.raises(RecordError, match="ssba trigger: expected"):
        SSBA.from_json({**attack.to_json(), **change}, attack.arrays())


def test_the_defaults_are_backdoorbench_s() -> None:
    recipe = SSBA.create(SHAPE, seed=0).recipe
    assert recipe == HidingRecipe(epochs=20, batch_size=64, lr=1e-4, image_weight=10.0)
