"""Triggers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clp_plugin.adapters.builtin.attacks.badnets import BadNets
from clp_plugin.adapters.builtin.attacks.base import pattern_from_json, pattern_to_json
from clp_plugin.adapters.builtin.attacks.blended import Blended
from clp_plugin.adapters.builtin.attacks.catalogue import ATTACKS, create_attack
from clp_plugin.errors import ConfigError, RecordError

SHAPE = (3, 10, 12)
WIDE = (3, 16, 24)  # SIG and IAB need more room


@pytest.fixture
def wide() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, *WIDE), dtype=np.uint8)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_poisoning_leaves_the_originals_alone(name: str, wide: NDArray[np.uint8]) -> None:
    before = wide.copy()
    poisoned = create_attack(name, WIDE, seed=0, options={}).poison(wide)
    assert np.array_equal(wide, before)
    assert poisoned.dtype == np.uint8
    assert poisoned.shape == wide.shape
    assert not np.array_equal(poisoned, wide)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_read_back_from_json_poisons_alike(name: str, wide: NDArray[np.uint8]) -> None:
    attack = create_attack(name, WIDE, seed=5, options={})
    again = ATTACKS[name].from_json(json.loads(json.dumps(attack.to_json())), attack.arrays())
    assert np.array_equal(attack.poison(wide), again.poison(wide))


# SIG's wave has nothing random; IAB's networks differ by the seed but say the same before they are trained.
@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"sig", "iab"}))
def test_the_seed_decides_the_pattern(name: str, wide: NDArray[np.uint8]) -> None:
    first, again, other = (create_attack(name, WIDE, seed=seed, options={}).poison(wide) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


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


def test_blended_is_the_rounded_mix(pixels: NDArray[np.uint8]) -> None:
    attack = Blended.create(SHAPE, seed=0, alpha=0.2)
    exact = 0.8 * pixels.astype(np.float64) + 0.2 * attack.pattern
    assert np.abs(attack.poison(pixels) - exact).max() <= 0.5 + 1e-3


def test_blended_works_through_long_sets_in_parts(pixels: NDArray[np.uint8]) -> None:
    attack = Blended.create(SHAPE, seed=0)
    many = np.concatenate([pixels] * 500)
    assert np.array_equal(attack.poison(many), np.concatenate([attack.poison(pixels)] * 500))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("badnets", {"size": 11}, "size 11 with inset 0 does not fit into 10x12"),
        ("badnets", {"size": 8, "inset": 3}, "give a size from 1 to 7"),
        ("badnets", {"size": 0}, "size 0"),
        ("badnets", {"pattern": "red"}, "unknown badnets pattern 'red'; known: checkerboard, random, white"),
        ("badnets", {"corner": "middle"}, "unknown badnets corner 'middle'"),
        ("badnets", {"alpha": 0.5}, "unknown option of attack 'badnets' 'alpha'; known: corner, inset, pattern, size"),
        ("badnets", {"size": "3"}, "wrong type"),
        ("blended", {"alpha": 0.0}, r"alpha in \(0, 1\], found 0.0"),
        ("blended", {"alpha": 1.5}, r"found 1.5"),
        ("badnet", {}, "unknown attack 'badnet'; known: badnets, blended, cla, iab, sig, ssba, trojan, wanet"),
    ],
)
def test_impossible_attacks_are_told(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack(name, SHAPE, seed=0, options=options)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_damaged_json_is_told(name: str) -> None:
    good = create_attack(name, WIDE, seed=0, options={}).to_json()
    for key in good:
        with pytest.raises(RecordError):
            ATTACKS[name].from_json({**good, key: None}, {})


def test_blended_refuses_images_of_another_size(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match=r"pattern is \(3, 4, 4\), the images are \(3, 10, 12\)"):
        Blended.create((3, 4, 4), seed=0).poison(pixels)


def test_a_pattern_keeps_its_bytes_and_a_wrong_shape_is_told() -> None:
    pattern = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = pattern_to_json(pattern)
    assert np.array_equal(pattern_from_json(data), pattern)
    with pytest.raises(RecordError, match="fit each other"):
        pattern_from_json({**data, "shape": [2, 3, 5]})
