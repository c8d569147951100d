"""Correlations against scipy, and intervals against a known truth."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from clp_plugin.errors import ConfigError
from clp_plugin.evidence import correlation
from clp_plugin.evidence.correlation import LayerCorrelation, correlate
from clp_plugin.types import Floats, Scores


def pair(rho: float, count: int, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count)
    return x + 5, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(count)


def one(x: Floats, y: Floats, **options: int) -> LayerCorrelation:
    return correlate(Scores({"a": np.asarray(x, float)}), {"a": np.asarray(y, float)}, **options).layers[0]


@pytest.mark.parametrize("count", [3, 4, 16, 300])
@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.4, 0.99])
def test_coefficients_and_p_values_are_those_of_scipy(rho: float, count: int) -> None:
    for seed in range(3):
        x, y = pair(rho, count, seed)
        found = one(x, y, bootstrap=10)
        pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
        assert found.pearson == pytest.approx(pearson.statistic, rel=1e-9, abs=1e-12)
        assert found.pearson_p == pytest.approx(pearson.pvalue, rel=1e-6, abs=1e-12)
        assert found.spearman == pytest.approx(spearman.statistic, rel=1e-9, abs=1e-12)
        if abs(spearman.statistic) < 1 - 1e-9:
            assert found.spearman_p == pytest.approx(spearman.pvalue, rel=1e-6, abs=1e-12)
        assert found.n == count
        assert found.reason == ""


def test_ties_share_their_mean_rank() -> None:
    x = np.array([1.0, 1, 1, 2, 2, 3, 4, 4, 5, 9])
    y = np.array([0.0, 0, 1, 1, 1, 5, 2, 2, 7, 7])
    found = one(x, y)
    expected = stats.spearmanr(x, y)
    assert found.spearman == pytest.approx(expected.statistic, rel=1e-12)
    assert found.spearman_p == pytest.approx(expected.pvalue, rel=1e-9)


def test_units_do_not_matter() -> None:
    x, y = pair(0.5, 40, 1)
    first, second = one(x, y), one(1e-9 * x, 1e9 * y + 1e9)
    assert second.pearson == pytest.approx(first.pearson, rel=1e-6)
    assert second.spearman == first.spearman


def test_perfect_dependence_is_one_and_certain() -> None:
    x = np.arange(1.0, 30)
    assert one(x, 3 * x + 1).pearson == pytest.approx(1)
    assert one(x, 3 * x + 1).pearson_p < 1e-12
    bent = one(x, np.exp(x / 4))
    assert bent.spearman == pytest.approx(1)
    assert bent.pearson < 0.9
    assert one(x, -x).pearson == pytest.approx(-1)


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0] * 5, [1.0, 2, 3, 4, 5], "score is the same for all channels"),
        ([1.0, 2, 3, 4, 5], [0.0] * 5, "TAC is the same for all channels"),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], [1.0, 2, 3, 4], "score is the same"),  # equal but for rounding
        ([1.0, 2, 3], [math.nan] * 3, "TAC is not finite .the layer did not run."),
        ([1.0, math.inf, 3], [1.0, 2, 3], "score is not finite"),
        ([1.0, 2], [1.0, 2], "needs 3 channels, has 2"),
        ([], [], "needs 3 channels, has 0"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_not_defined_is_nan_with_a_reason(x: list[float], y: list[float], reason: str) -> None:
    found = one(np.array(x), np.array(y))
    for value in (found.pearson, found.spearman, found.pearson_p, found.spearman_p, *found.pearson_ci):
        assert math.isnan(value)
    assert found.n == len(x)
    assert found.reason.startswith(reason.partition(" .")[0])
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["pearson"] is None
    assert plain["spearman_ci"] == [None, None]


def test_intervals_are_reproducible_and_depend_on_the_seed() -> None:
    x, y = pair(0.6, 50, 0)
    first, again, other = one(x, y, seed=1), one(x, y, seed=1), one(x, y, seed=2)
    assert first == again
    assert first.pearson_ci != other.pearson_ci
    assert first.pearson == other.pearson


def test_interval_of_a_layer_does_not_depend_on_the_layers_around_it_changing_values() -> None:
    x, y = pair(0.6, 50, 0)
    v, w = pair(0.1, 20, 7)
    first = correlate(Scores({"a": x, "b": v}), {"a": y, "b": w})
    second = correlate(Scores({"a": x, "b": 2 * v**2}), {"a": y, "b": w})
    assert first.layers[0] == second.layers[0]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rho = 0.6
    true_spearman = 6 / math.pi * math.asin(rho / 2)
    covered = np.zeros(2)
    trials = 120
    for seed in range(trials):
        x, y = pair(rho, 80, seed + 1000)
        found = one(x, y, bootstrap=200, seed=seed)
        assert found.pearson_ci[0] <= found.pearson <= found.pearson_ci[1]
        covered += [
            found.pearson_ci[0] <= rho <= found.pearson_ci[1],
            found.spearman_ci[0] <= true_spearman <= found.spearman_ci[1],
        ]
    share = covered / trials
    assert (share > 0.87).all(), share  # three standard deviations below 95 % of 120 trials
    assert (share < 1).all(), "an interval that always covers is too wide"


def test_interval_agrees_with_scipy_bootstrap() -> None:
    x, y = pair(0.4, 60, 3)
    expected = stats.bootstrap(
        (x, y), lambda a, b: stats.pearsonr(a, b).statistic, paired=True, vectorized=False, n_resamples=800,
        method="percentile", random_state=0,
    ).confidence_interval  # fmt: skip
    found = one(x, y, bootstrap=4000).pearson_ci
    assert found == pytest.approx((expected.low, expected.high), abs=0.03)


def test_pool_is_of_values_standardized_within_their_layers_and_leaves_out_heads_and_undefined_layers() -> None:
    (x, y), (v, w), (h, k) = pair(0.8, 40, 1), pair(-0.2, 30, 2), pair(0.9, 10, 3)
    scores = Scores({"a": x, "b": 100 * v, "flat": np.ones(6), "head": h}, kinds={"head": "head"})
    found = correlate(scores, {"a": y, "b": 1e3 * w, "flat": np.arange(6.0), "head": k})
    assert [layer.name for layer in found.layers] == ["a", "b", "flat", "head"]
    assert not math.isnan(found.layers[3].pearson), "a head has its own entry"
    sigma = np.concatenate([stats.zscore(x), stats.zscore(v)])
    tac = np.concatenate([stats.zscore(y), stats.zscore(w)])
    assert found.pooled.name == "pooled"
    assert found.pooled.n == 70
    assert found.pooled.pearson == pytest.approx(stats.pearsonr(sigma, tac).statistic)
    assert found.pooled.spearman == pytest.approx(stats.spearmanr(sigma, tac).statistic)


def test_pool_holds_the_kinds_of_layers_that_are_asked_for() -> None:
    (x, y), (v, w) = pair(0.8, 40, 1), pair(-0.2, 30, 2)
    scores = Scores({"a": x, "b": v}, kinds={"a": "diagonal", "b": "conv"})
    tac = {"a": y, "b": w}
    assert correlate(scores, tac).pooled.n == 40
    assert correlate(scores, tac, layers=("fused", "conv")).pooled.n == 30
    assert correlate(replace(scores, unprunable=frozenset({"b"})), tac, layers=("diagonal", "conv")).pooled.n == 40


def test_pool_of_nothing_says_so() -> None:
    found = correlate(Scores({"a": np.ones(4)}), {"a": np.arange(4.0)})
    assert found.pooled.reason == "needs 3 channels, has 0"


def test_layers_that_do_not_match_are_named() -> None:
    scores = Scores({"a": np.arange(4.0)})
    with pytest.raises(ConfigError, match=r"TAC of layer 'a': expected 4 values, found nothing"):
        correlate(scores, {})
    with pytest.raises(ConfigError, match=r"TAC of layer 'a': expected 4 values, found 3 values"):
        correlate(scores, {"a": np.arange(3.0)})
    with pytest.raises(ConfigError, match=r"bootstrap: expected at least 1 resample, found 0"):
        correlate(scores, {"a": np.arange(4.0)}, bootstrap=0)


def test_resampling_in_parts_gives_the_same_numbers_in_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pair(0.3, 500, 1)
    whole = one(x, y, bootstrap=300)
    monkeypatch.setattr(correlation, "_MAX_RESAMPLED_VALUES", 5_000)
    tracemalloc.start()
    parts = one(x, y, bootstrap=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts == whole
    assert peak < 1_000_000  # all resamples at once take 300 x 500 x 8 bytes several times over
