"""The patch of BadNets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clp_plugin.adapters.builtin.attacks.badnets import BadNets
from clp_plugin.adapters.builtin.attacks.base import pattern_from_json, pattern_to_json
from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.errors import ConfigError, RecordError

SHAPE = (3, 10, 12)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("bottom-right", slice(5, 9), slice(7, 11)),
        ("bottom-left", slice(5, 9), slice(1, 5)),
        ("top-right", slice(1, 5), slice(7, 11)),
        ("top-left", slice(1, 5), slice(1, 5)),
    ],
)
def test_badnets_replaces_its_corner_and_nothing_else(
    pixels: NDArray[np.uint8], corner: Any, rows: slice, columns: slice
) -> None:
    attack = BadNets.create(SHAPE, seed=0, size=4, corner=corner, inset=1)
    poisoned = attack.poison(pixels)
    assert (poisoned[:, :, rows, columns] == attack.patch).all()
    poisoned[:, :, rows, columns] = pixels[:, :, rows, columns]
    assert np.array_equal(poisoned, pixels)


def test_the_default_patch_is_3x3_in_the_last_corner(pixels: NDArray[np.uint8]) -> None:
    changed = np.argwhere((BadNets.create(SHAPE, seed=0).poison(pixels) != pixels).any(axis=(0, 1)))
    assert changed.min(axis=0).tolist() == [7, 9]
    assert changed.max(axis=0).tolist() == [9, 11]


def test_patch_patterns() -> None:
    assert (BadNets.create(SHAPE, seed=0, pattern="white").patch == 255).all()
    board = BadNets.create(SHAPE, seed=0, pattern="checkerboard").patch
    assert board[1].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert len(np.unique(BadNets.create(SHAPE, seed=0, size=8).patch)) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 11}, "size 11 with inset 0 does not fit into 10x12"),
        ({"size": 8, "inset": 3}, "give a size from 1 to 7"),
        ({"size": 0}, "size 0"),
        ({"pattern": "red"}, "unknown badnets pattern 'red'; known: checkerboard, random, white"),
        ({"corner": "middle"}, "unknown badnets corner 'middle'"),
        ({"size": "3"}, "wrong type"),
    ],
)
def test_impossible_patches_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("badnets", SHAPE, seed=0, options=options)


def test_a_pattern_keeps_its_bytes_and_a_wrong_shape_is_told() -> None:
    pattern = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = pattern_to_json(pattern)
    assert np.array_equal(pattern_from_json(data), pattern)
    with pytest.raises(RecordError, match="fit each other"):
        pattern_from_json({**data, "shape": [2, 3, 5]})
