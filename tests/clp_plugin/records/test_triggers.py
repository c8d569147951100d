"""Triggers against the formula of each, pixel by pixel, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError
from clp_plugin.records.triggers import Trigger

SHAPE = (3, 8, 6)


def images(count: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size=(count, *SHAPE), dtype=np.uint8)


def pattern(*shape: int, low: int = 0, high: int = 256) -> NDArray[np.float64]:
    return np.random.default_rng(1).integers(low, high, size=shape).astype(np.float64)


@pytest.mark.parametrize(
    ("at", "rows", "columns"),
    [
        ("top-left", (0, 3), (0, 2)),
        ("top-right", (0, 3), (4, 6)),
        ("bottom-left", (5, 8), (0, 2)),
        ("bottom-right", (5, 8), (4, 6)),
        ("center", (2, 5), (2, 4)),
        ("1,4", (4, 7), (1, 3)),  # X is the column, Y the row
        ("0,0", (0, 3), (0, 2)),
    ],
)
def test_a_patch_takes_the_place_of_what_is_below_it_and_of_nothing_else(
    at: str, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    clean, patch = images(), pattern(3, 3, 2)
    wanted = clean.copy()
    wanted[:, :, slice(*rows), slice(*columns)] = patch
    before = clean.copy()
    assert (Trigger.patch(patch, shape=SHAPE, at=at)(clean) == wanted).all()
    assert (clean == before).all()


def test_a_mask_lets_the_image_through_where_it_is_low() -> None:
    clean, patch = images(), pattern(3, 8, 6)
    mask = np.zeros((1, 8, 6))
    mask[0, 2], mask[0, 3] = 1, 0.25
    found = Trigger.patch(patch, shape=SHAPE, mask=mask)(clean)
    assert (found[:, :, 2] == patch[:, 2]).all()
    assert (found[:, :, 3] == np.rint(0.75 * clean[:, :, 3] + 0.25 * patch[:, 3])).all()
    assert (found[:, :, [0, 1, 4, 5, 6, 7]] == clean[:, :, [0, 1, 4, 5, 6, 7]]).all()


def test_a_blend_mixes_the_whole_image() -> None:
    clean, patch = images(), pattern(1, 8, 6)  # grey, for all channels
    found = Trigger.blend(patch, 0.2, shape=SHAPE)(clean)
    assert (found == np.rint(0.8 * clean + 0.2 * patch)).all()


def test_an_addition_is_clipped_at_both_ends_and_takes_away_what_its_mask_covers() -> None:
    clean, added = images(), pattern(3, 8, 6, low=-200, high=200)
    sums = clean.astype(int) + added
    assert (Trigger.addition(added, shape=SHAPE)(clean) == sums.clip(0, 255)).all()
    mask = np.zeros((3, 8, 6))
    mask[:, :4] = 1
    found = Trigger.addition(added, shape=SHAPE, mask=mask)(clean)
    assert (found[:, :, 4:] == sums[:, :, 4:].clip(0, 255)).all()
    assert (found[:, :, :4] == added[:, :4].clip(0, 255)).all()


def test_many_images_become_the_same_as_one_by_one() -> None:
    clean, trigger = images(600), Trigger.blend(pattern(3, 8, 6), 0.3, shape=SHAPE)
    assert (trigger(clean) == np.concatenate([trigger(clean[i : i + 1]) for i in range(600)])).all()


@pytest.mark.parametrize(
    ("size", "at", "message"),
    [
        ((3, 3, 2), None, "say where it lies"),
        ((3, 9, 2), "top-left", "more than the images' 8x6"),
        ((2, 3, 2), "top-left", "2 channels, the images 3"),
        ((3, 3, 2), "5,5", "give at most 4,5"),
        ((3, 3, 2), "middle", "unknown place 'middle'"),
    ],
)
def test_what_does_not_fit_is_refused(size: tuple[int, ...], at: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trigger.patch(pattern(*size), shape=SHAPE, at=at)


def test_a_mask_of_another_size_and_a_weight_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="3x2 pixels and its mask 2x2"):
        Trigger.patch(pattern(3, 3, 2), shape=SHAPE, mask=np.ones((1, 2, 2)), at="top-left")
    for weight in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="above 0, at most 1"):
            Trigger.blend(pattern(3, 8, 6), weight, shape=SHAPE)
    with pytest.raises(ConfigError, match="is made for images of"):
        Trigger.patch(pattern(3, 8, 6), shape=SHAPE)(np.zeros((1, 3, 8, 7), dtype=np.uint8))
