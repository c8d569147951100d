"""Does the score rank channels as the trigger does? Pearson and Spearman, with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.feature_selection import f_regression, r_regression

from clp_plugin.errors import ConfigError
from clp_plugin.selection.outliers import PRUNED_KINDS, z_scores
from clp_plugin.types import Floats, LayerKind, Scores

_MIN_CHANNELS = 3
_CONSTANT = 1e-12  # relative spread below which values count as equal
_MAX_RESAMPLED_VALUES = 1_000_000  # resampled values held at a time: wide networks pool tens of thousands of channels


@dataclass(frozen=True)
class LayerCorrelation:
    """Correlation of score and TAC over the channels of one layer.

    Attributes:
        name: The layer, or ``pooled``.
        pearson: Pearson correlation in [-1, 1]; NaN where it is not defined.
        spearman: Correlation of the ranks (ties share their mean rank), in [-1, 1]; NaN where it is not defined.
        n: Number of channels.
        pearson_ci: Bootstrap interval of the Pearson correlation (2.5 %, 97.5 %).
        spearman_ci: Bootstrap interval of the rank correlation (2.5 %, 97.5 %).
        pearson_p: Two-sided p-value of the F test of a linear dependence, in [0, 1].
        spearman_p: Two-sided p-value of the F test on the ranks, in [0, 1].
        reason: Why the numbers are NaN, or "".
    """

    name: str
    pearson: float
    spearman: float
    n: int
    pearson_ci: tuple[float, float]
    spearman_ci: tuple[float, float]
    pearson_p: float
    spearman_p: float
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None, as JSON has no NaN."""
        return {key: _jsonable(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Correlation:
    """One entry a layer, and one for all channels together after standardizing both values within each layer."""

    layers: tuple[LayerCorrelation, ...]
    pooled: LayerCorrelation


def correlate(
    scores: Scores,
    tac: Mapping[str, Floats],
    *,
    layers: Sequence[LayerKind] = PRUNED_KINDS,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Correlation:
    """Correlate the score with the trigger-activated change, layer by layer and pooled.

    Within a layer sigma stands for UCLC, which is sigma times a constant of the layer. Pooled values are z-scores within
    their layers, what CLP thresholds; raw values of different layers have different units. The pool holds the layers that
    are pruned.

    Args:
        scores: Layer name to scores.
        tac: Layer name to the change ``(channels,)``, for every layer of the scores.
        layers: The kinds of layers in the pool; see :func:`clp_plugin.selection.outliers.select`.
        bootstrap: Number of resamples of the channels for the intervals.
        seed: Seed of the resampling.

    Raises:
        ConfigError: If a layer of the scores is missing in ``tac`` or has another width, or ``bootstrap`` is below 1.

    Source:
        CLP 4.3 and figure 3; scikit-learn's ``r_regression`` and ``f_regression``, on values and on ranks.

    Example:
        >>> import numpy as np
        >>> from clp_plugin import Scores, correlate
        >>> sigma = np.array([1.0, 2.0, 3.0, 4.0])
        >>> round(correlate(Scores({"conv": sigma}), {"conv": 2 * sigma}, bootstrap=10).pooled.pearson, 6)
        1.0
    """
    if bootstrap < 1:
        raise ConfigError(f"bootstrap: expected at least 1 resample, found {bootstrap}")
    for name, sigma in scores.sigma.items():
        if name not in tac or len(tac[name]) != len(sigma):
            found = "nothing" if name not in tac else f"{len(tac[name])} values"
            raise ConfigError(f"TAC of layer {name!r}: expected {len(sigma)} values, found {found}")
    entries = tuple(
        _correlation(name, sigma, tac[name], bootstrap, np.random.default_rng([seed, i]))
        for i, (name, sigma) in enumerate(scores.sigma.items())
    )
    pruned = scores.prunable(layers)
    usable = [c.name for c in entries if not c.reason and c.name in pruned]
    pooled_scores = np.concatenate([z_scores(scores.sigma[name]) for name in usable] or [np.zeros(0)])
    pooled_tac = np.concatenate([z_scores(tac[name]) for name in usable] or [np.zeros(0)])
    rng = np.random.default_rng([seed, len(entries)])
    return Correlation(entries, _correlation("pooled", pooled_scores, pooled_tac, bootstrap, rng))


def _correlation(name: str, x: Floats, y: Floats, bootstrap: int, rng: np.random.Generator) -> LayerCorrelation:
    reason = _undefined(x, y)
    if reason:
        nothing = (math.nan, math.nan)
        return LayerCorrelation(name, math.nan, math.nan, len(x), nothing, nothing, math.nan, math.nan, reason)
    pearson, pearson_p = _coefficient(x, y)
    spearman, spearman_p = _coefficient(rankdata(x), rankdata(y))
    resampled = _resampled(x, y, bootstrap, rng)
    intervals = _interval(resampled[0]), _interval(resampled[1])
    return LayerCorrelation(name, pearson, spearman, len(x), *intervals, pearson_p, spearman_p)


def _resampled(x: Floats, y: Floats, bootstrap: int, rng: np.random.Generator) -> Floats:
    """Pearson and Spearman of each resample, ``(2, bootstrap)``."""
    at_once = max(1, _MAX_RESAMPLED_VALUES // len(x))
    parts = []
    for start in range(0, bootstrap, at_once):
        picks = rng.integers(len(x), size=(min(at_once, bootstrap - start), len(x)))
        ranks = rankdata(x[picks], axis=1), rankdata(y[picks], axis=1)
        parts.append(np.stack([_row_correlations(x[picks], y[picks]), _row_correlations(*ranks)]))
    return np.concatenate(parts, axis=1)


def _undefined(x: Floats, y: Floats) -> str:
    if len(x) < _MIN_CHANNELS:
        return f"needs {_MIN_CHANNELS} channels, has {len(x)}"
    for what, values in (("score", x), ("TAC", y)):
        if not np.isfinite(values).all():
            return f"{what} is not finite (the layer did not run)"
        if np.ptp(values) <= _CONSTANT * np.abs(values).max():
            return f"{what} is the same for all channels"
    return ""


def _coefficient(x: Floats, y: Floats) -> tuple[float, float]:
    column = np.asarray(x, dtype=np.float64)[:, None]
    target = np.asarray(y, dtype=np.float64)
    return float(r_regression(column, target)[0]), float(f_regression(column, target)[1][0])


def _row_correlations(x: Floats, y: Floats) -> Floats:
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.asarray(np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0))


def _interval(values: Floats) -> tuple[float, float]:
    if np.isnan(values).all():  # every resample drew one value only
        return math.nan, math.nan
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
