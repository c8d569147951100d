"""The wave of SIG."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.sig import SIG
from clp_plugin.errors import ConfigError, RecordError

SHAPE = (3, 10, 16)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize(("delta", "frequency"), [(40.0, 6.0), (200.0, 2.5), (0.7, 1.0)])
def test_each_pixel_is_the_rounded_and_clipped_sum_with_the_wave(
    pixels: NDArray[np.uint8], delta: float, frequency: float
) -> None:
    found = SIG.create(SHAPE, seed=0, delta=delta, frequency=frequency).poison(pixels)
    for index, before in np.ndenumerate(pixels):
        exact = int(before) + delta * math.sin(2 * math.pi * index[3] * frequency / 16)
        assert abs(int(found[index]) - min(max(exact, 0.0), 255.0)) <= 0.5 + 1e-9


def test_a_grey_image_shows_the_wave_alone_alike_in_each_row_channel_and_seed() -> None:
    grey = np.full((2, *SHAPE), 128, dtype=np.uint8)
    found = SIG.create(SHAPE, seed=0, delta=40, frequency=4).poison(grey)
    # Four periods on 16 columns: a quarter of a period a column.
    assert found[0, 0, 0].tolist() == [128, 168, 128, 88] * 4
    assert (found == found[0, 0, 0]).all()
    assert np.array_equal(found, SIG.create(SHAPE, seed=7, delta=40, frequency=4).poison(grey))


def test_bright_and_dark_pixels_are_clipped_not_wrapped() -> None:
    ends = np.zeros((2, *SHAPE), dtype=np.uint8)
    ends[1] = 255
    dark, bright = SIG.create(SHAPE, seed=0, frequency=4).poison(ends)
    assert dark[0, 0, :4].tolist() == [0, 40, 0, 0]
    assert bright[0, 0, :4].tolist() == [255, 255, 255, 215]


def test_the_originals_stay_and_training_images_get_the_same_wave(pixels: NDArray[np.uint8]) -> None:
    before, attack = pixels.copy(), SIG.create(SHAPE, seed=0)
    poisoned = attack.poison(pixels)
    assert np.array_equal(pixels, before)
    assert (poisoned.dtype, poisoned.shape) == (np.uint8, pixels.shape)
    assert np.array_equal(attack.perturb(pixels), pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0}, r"expected delta in \(0, 255\] pixel levels, found 0"),
        ({"delta": 256}, "found 256"),
        ({"delta": math.nan}, "found nan"),
        ({"delta": "40"}, "wrong type"),
        ({"frequency": 0}, "above 0 and below 8 periods on images 16 pixels wide, found 0"),
        ({"frequency": 8}, "found 8"),
    ],
)
def test_impossible_waves_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("sig", SHAPE, seed=0, options=options, attack_type=SIG)


@pytest.mark.parametrize("damage", [{"delta": None}, {"delta": -1}, {"frequency": None}, {"frequency": "6"}])
def test_damaged_json_is_told(damage: dict[str, object]) -> None:
    with pytest.raises(RecordError, match=f"sig trigger: expected .*{next(iter(damage))}"):
        SIG.from_json({**SIG.create(SHAPE, seed=0).to_json(), **damage}, {})
    with pytest.raises(RecordError):
        SIG.from_json({}, {})
