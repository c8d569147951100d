"""Thresholds by hand-computed means and deviations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from clp_plugin.errors import ConfigError
from clp_plugin.selection.outliers import outliers, select, z_scores
from clp_plugin.types import Scores

ROW = np.array([1.0, 1.0, 1.0, 1.0, 6.0])  # mean 2, population std 2, unbiased std 5 ** 0.5


def scores(pairing: str = "dataflow", **rows: object) -> Scores:
    return Scores({name: np.asarray(row, dtype=float) for name, row in rows.items()}, pairing=pairing)


@pytest.mark.parametrize(("u", "pruned"), [(0, [4]), (1.99, [4]), (2, []), (2.01, [])])
def test_prunes_strictly_above_mean_plus_u_population_deviations(u: float, pruned: list[int]) -> None:
    assert select(scores(a=ROW), u).indices().get("a", []) == pruned


def test_unbiased_deviation_raises_the_threshold() -> None:
    """(6 - 2) / 5 ** 0.5 = 1.789."""
    assert len(select(scores(a=ROW), 1.9, unbiased=True)) == 0
    assert len(select(scores(a=ROW), 1.78, unbiased=True)) == 1


def test_published_pairing_brings_the_published_deviation() -> None:
    assert len(select(scores(a=ROW, pairing="registration"), 1.9)) == 0
    assert len(select(scores(a=ROW, pairing="registration"), 1.9, unbiased=False)) == 1


def test_small_scores_are_never_pruned() -> None:
    assert select(scores(a=-ROW + 7), 1.0).indices() == {}


@pytest.mark.parametrize("row", [[3.0], [], [0.0, 0.0, 0.0], [0.1 + 0.2, 0.3, 0.3, 0.3], [7.0] * 64])
@pytest.mark.parametrize("pairing", ["dataflow", "registration"])
def test_one_channel_or_equal_scores_prune_nothing(row: list[float], pairing: str) -> None:
    mask = select(scores(a=row, pairing=pairing), 0.0)
    assert len(mask) == 0
    assert mask.pruned["a"].shape == (len(row),)


def test_equal_up_to_rounding_but_tiny_scores_with_an_outlier_still_prune() -> None:
    assert select(scores(a=ROW * 1e-200), 1.0).indices() == {"a": [4]}


def test_each_layer_has_its_own_threshold_and_heads_none() -> None:
    found = select(Scores({"a": ROW, "b": ROW[::-1] * 100, "fc": ROW}, kinds={"fc": "head"}), 1.5)
    assert found.indices() == {"a": [4], "b": [0]}
    assert set(found.pruned) == {"a", "b"}


@pytest.mark.parametrize("u", [-0.1, float("nan")])
def test_impossible_u_is_refused(u: float) -> None:
    with pytest.raises(ConfigError, match=str(u)):
        select(scores(a=ROW), u)


def test_more_deviations_never_prune_more() -> None:
    given = scores(a=np.random.default_rng(0).lognormal(size=200))
    sets = [set(select(given, u).indices().get("a", [])) for u in (0, 0.5, 1, 2, 3, 5)]
    assert all(later <= earlier for earlier, later in pairwise(sets))
    assert len(sets[0]) > len(sets[-1])


def test_lone_convolutions_are_pruned_when_asked_for_and_never_where_silence_is_out_of_reach() -> None:
    kinds = {"a": "fused", "b": "diagonal", "c": "conv", "d": "conv"}
    given = Scores(dict.fromkeys("abcd", ROW), kinds=kinds, unprunable=frozenset({"d"}))  # type: ignore[arg-type]
    assert select(given, 1.5).indices() == {"a": [4], "b": [4]}
    assert select(given, 1.5, layers=("conv", "diagonal")).indices() == {"b": [4], "c": [4]}
    with pytest.raises(ConfigError, match="layers: expected a list of fused, diagonal, conv"):
        select(given, 1.5, layers=("head",))
    with pytest.raises(ConfigError, match="found ''"):
        select(given, 1.5, layers=())


def test_unknown_channels_are_left_alone_and_do_not_count() -> None:
    row = np.array([np.nan, *ROW, np.inf])
    assert outliers(row, 1.5).tolist() == [False, False, False, False, False, True, False]
    assert not outliers(np.array([np.nan, 3.0]), 0.0).any()


def test_z_scores_by_hand() -> None:
    assert z_scores(ROW).tolist() == [-0.5, -0.5, -0.5, -0.5, 2.0]
    assert z_scores(ROW, unbiased=True)[-1] == pytest.approx(4 / 5**0.5)
    assert z_scores(np.full(3, 0.7)).tolist() == [0, 0, 0]
    assert z_scores(np.array([0.7])).tolist() == [0]
