"""The input-aware attack: what it puts on images, and its options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from lively_iab import SHAPE, lively, outputs, tiny
from numpy.typing import NDArray
from small_attack import stored

from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.iab.attack import IAB
from clp_plugin.adapters.builtin.attacks.iab.training import IABOptions
from clp_plugin.errors import ConfigError, RecordError


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def test_poisoning_puts_the_pattern_where_the_mask_is(pixels: NDArray[np.uint8]) -> None:
    attack = lively()
    pattern, mask = outputs(attack, pixels)
    assert mask.min() < 0.01
    assert mask.max() > 0.99
    exact = pixels + (255 * pattern - pixels) * mask
    poisoned = attack.poison(pixels)
    assert np.abs(poisoned - exact).max() <= 0.5 + 1e-2
    outside = np.broadcast_to(mask < 1e-3, pixels.shape)
    assert np.array_equal(poisoned[outside], pixels[outside])
    assert not np.array_equal(poisoned, pixels)


def test_each_image_has_a_trigger_of_its_own(pixels: NDArray[np.uint8]) -> None:
    pattern, mask = outputs(lively(), pixels)
    assert np.abs(pattern[0] - pattern[1]).max() > 0.1
    assert np.abs(mask[0] - mask[1]).max() > 0.5


def test_poisoning_leaves_the_networks_alone(pixels: NDArray[np.uint8]) -> None:
    attack = lively()
    attack.generator.train()
    before = stored(attack)
    first = attack.poison(pixels)
    assert np.array_equal(attack.poison(pixels), first)
    assert attack.generator.training
    assert stored(attack) == before


def test_long_sets_are_worked_through_in_parts(pixels: NDArray[np.uint8]) -> None:
    attack = lively()
    found = attack.poison(np.concatenate([pixels] * 50)).astype(int)
    assert np.abs(found - np.concatenate([attack.poison(pixels)] * 50)).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "expected width to be a whole number from 1 on, found 0; the paper's is 32"),
        ({"width": 2.5}, "expected width .* found 2.5"),
        ({"width": "8"}, "expected width .* found '8'"),
        ({"mask_epochs": 0}, "expected mask_epochs .* found 0; the paper's is 25"),
        ({"mask_density": 1.0}, "expected mask_density to be a share between 0 and 1, found 1.0"),
        ({"mask_density": "a"}, "wrong type"),
        ({"lambda_norm": -1.0}, "expected lambda_norm .* found -1.0"),
        ({"lambda_div": math.inf}, "expected lambda_div .* found inf"),
        ({"cross_ratio": 1.5}, "expected cross_ratio to be a share from 0 to 1, found 1.5; the paper's is 1.0"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("iab", SHAPE, seed=0, options=options, attack_type=IAB)


@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 16, 20), (3, 4, 8), (3, 0, 8)])
def test_images_that_cannot_be_halved_three_times_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=f"multiples of 8, found {shape[1]}x{shape[2]}; choose another image size"):
        IAB.create(shape, seed=0, width=2)


def test_the_paper_s_options_are_the_defaults() -> None:
    assert IAB.create((3, 8, 8), seed=0).options == IABOptions(32, 25, 0.032, 100.0, 1.0, 1.0)


@pytest.mark.parametrize("shape", [[3, 8], [3, 8, 12], [0, 8, 16], [3, 8, "16"]])
def test_a_damaged_shape_is_told(shape: list[object]) -> None:
    attack = tiny()
    with pytest.raises(RecordError, match="iab trigger"):
        IAB.from_json({**attack.to_json(), "input_shape": shape}, attack.arrays())


@pytest.mark.parametrize("option", ["width", "mask_epochs", "mask_density", "lambda_norm", "lambda_div", "cross_ratio"])
def test_a_damaged_option_is_told(option: str) -> None:
    attack = tiny()
    with pytest.raises(RecordError, match=f"iab trigger.*{option}"):
        IAB.from_json({**attack.to_json(), option: -1}, attack.arrays())
