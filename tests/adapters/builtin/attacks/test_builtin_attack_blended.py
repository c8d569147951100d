"""The mix of Blended."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clp_plugin.adapters.builtin.attacks.blended import Blended
from clp_plugin.errors import ConfigError

SHAPE = (3, 10, 12)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


def test_blended_is_the_rounded_mix(pixels: NDArray[np.uint8]) -> None:
    attack = Blended.create(SHAPE, seed=0, alpha=0.2)
    exact = 0.8 * pixels.astype(np.float64) + 0.2 * attack.pattern
    assert np.abs(attack.poison(pixels) - exact).max() <= 0.5 + 1e-3


def test_blended_works_through_long_sets_in_parts(pixels: NDArray[np.uint8]) -> None:
    attack = Blended.create(SHAPE, seed=0)
    many = np.concatenate([pixels] * 500)
    assert np.array_equal(attack.poison(many), np.concatenate([attack.poison(pixels)] * 500))


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_an_impossible_share_is_told(alpha: float) -> None:
    with pytest.raises(ConfigError, match=rf"alpha in \(0, 1\], found {alpha}"):
        Blended.create(SHAPE, seed=0, alpha=alpha)
