"""Who repairs better, and whether the records at hand can tell: methods against methods over many records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, unknown_name

from .labels import method_labels

REMOVED_ASR, REMOVED_ACC_DROP = 0.1, 0.05
BACKDOOR_MARGIN = 0.1  # ASR above the base rate: below that there is no backdoor to be removed
REMOVED = (
    f"removed: ASR falls to {100 * REMOVED_ASR:g} % or less for at most {100 * REMOVED_ACC_DROP:g} points of accuracy, on "
    f"records whose attack took (ASR at least {100 * BACKDOOR_MARGIN:g} points above the base rate)"
)
_RESAMPLES = 10_000
_FEWEST_TO_TELL = 6  # of five records even five wins happen by chance more than once in twenty times
Metric = Literal["der", "after_acc", "after_asr", "after_ra"]
_HIGHER_IS_BETTER: Mapping[Metric, bool] = {"der": True, "after_acc": True, "after_asr": False, "after_ra": True}
_MEASURED = (
    "before_acc", "before_asr", "before_base_rate", "after_acc", "after_asr", "after_ra", "der", "seconds", "pruned",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One method against another on the records that both were run on.

    Attributes:
        first: Label of the one method.
        second: Label of the other method.
        records: Number of attacked models that both were run on.
        wins: Number of them on which the first is better by more than half a percentage point.
        losses: Number of them on which the second is better by more than half a percentage point.
        difference: Mean over records of first minus second, in the metric's own unit, a fraction.
        low: Lower end of the 95 % interval of that mean, by a bootstrap over records.
        high: Upper end of the same interval.
        better: The label of the better method, or None where the records cannot tell: the interval holds 0, or there are
            fewer than six records.
    """

    first: str
    second: str
    records: int
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    better: str | None

    @property
    def ties(self) -> int:
        """Number of records on which the two are within half a percentage point of each other."""
        return self.records - self.wins - self.losses

    def statement(self, metric: Metric) -> str:
        """One sentence on what the records say of the two methods."""
        numbers = (
            f"{100 * self.difference:+.1f} points of {metric.removeprefix('after_').upper()} on average "
            f"(95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}), "
            f"{self.wins} wins, {self.ties} ties, {self.losses} losses on {self.records} records"
        )
        if self.better is None:
            return f"{self.first} or {self.second}: these records cannot tell; {self.first} has {numbers}"
        worse = self.second if self.better == self.first else self.first
        return f"{self.better} is better than {worse}: {self.first} has {numbers}"


def per_record(frame: pd.DataFrame) -> pd.DataFrame:
    """Average what was run several times, so that each attacked model counts once for each method.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them; failed ones are left out.

    Returns:
        One row for each pair of attacked model (its SHA-256 and record) and method: ``label, sha256, record, attack,
        architecture, dataset, poison_rate``, and the means over seeds of the metrics, as fractions, of ``seconds`` and of the
        number of channels ``pruned``; and ``spread``, the range of ASR over those runs.
    """
    done = frame[frame["after_acc"].notna()] if len(frame) else frame
    done = done.assign(label=method_labels(done)).astype(dict.fromkeys(_MEASURED, float))
    facts = ["sha256", "record", "attack", "architecture", "dataset", "poison_rate"]
    groups = done.groupby(["label", *facts], sort=False, dropna=False)
    spread = groups["after_asr"].max() - groups["after_asr"].min()
    return groups[list(_MEASURED)].mean().assign(spread=spread).reset_index()


def leaderboard(frame: pd.DataFrame, *, sort: Metric = "der") -> pd.DataFrame:
    """Rank methods by their means over attacked models.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.
        sort: The metric that orders the rows, the best method first.

    Returns:
        One row a method. ``label`` names it, and ``records`` counts the attacked models on which the attack took. Over these
        go the means ``acc, asr, ra, der`` (fractions), the 95 % interval ``der_low, der_high`` of the mean DER (a bootstrap
        over records), ``removed`` (a number of models), and ``before_acc, before_asr, base_rate``. ``seconds`` is the mean
        over all models, and ``spread`` the largest range of ASR over the seeds of one method on one model; options of one
        method are rows of their own. ``idle_records`` counts the models without a working backdoor (clean ones, or ones on
        which the attack failed), ``idle_untouched`` those of them on which the method pruned nothing at all, and
        ``idle_acc_drop`` is the mean loss of accuracy on them.

    Raises:
        ConfigError: If no outcome has metrics, or the metric is unknown.
    """
    if sort not in _HIGHER_IS_BETTER:
        raise ConfigError(unknown_name("metric", sort, _HIGHER_IS_BETTER))
    runs = per_record(frame)
    if not len(runs):
        raise ConfigError("a leaderboard needs at least one outcome with metrics, found none; run some methods first")
    backdoored = has_backdoor(runs)
    rows = [_row(str(label), own, backdoored[own.index]) for label, own in runs.groupby("label", sort=False)]
    key = sort.removeprefix("after_")
    return pd.DataFrame(rows).sort_values(
        [key, "label"], ascending=[not _HIGHER_IS_BETTER[sort], True], ignore_index=True
    )


def has_backdoor(runs: pd.DataFrame) -> pd.Series[bool]:
    """Tell the rows whose attacked model has a backdoor that works: an ASR well above the base rate."""
    return (runs["before_asr"] - runs["before_base_rate"].fillna(0.0)) >= BACKDOOR_MARGIN


def compare_methods(
    frame: pd.DataFrame, *, metric: Metric = "der", resamples: int = _RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """Compare every pair of methods on the records that both were run on, by a paired bootstrap over records.

    Records are the clusters: runs of one method on one record are averaged first, so that many seeds do not pass for many
    records.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.
        metric: The metric to compare.
        resamples: Number of resampled sets of records.
        seed: Seed of the resampling.

    Returns:
        One comparison a pair with at least two records in common, in the order of the methods' first appearance.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals.
    """
    runs = per_record(frame)
    if not len(runs):
        return []
    runs = runs[has_backdoor(runs)]
    table = runs.pivot_table(index=["sha256", "record"], columns="label", values=metric, sort=False)
    found = []
    for first, second in combinations(map(str, table.columns), 2):
        both = (table[first] - table[second]).dropna().to_numpy(float)
        if len(both) >= 2:
            found.append(_compared(first, second, both, metric, interval_of_mean(both, resamples=resamples, seed=seed)))
    return found


def _compared(first: str, second: str, both: np.ndarray, metric: Metric, interval: tuple[float, float]) -> Comparison:
    low, high = interval
    gain = both if _HIGHER_IS_BETTER[metric] else -both
    better = None
    if len(both) >= _FEWEST_TO_TELL and (low > 0 or high < 0):
        better = first if gain.mean() > 0 else second
    wins, losses = int((gain > 0.005).sum()), int((gain < -0.005).sum())
    return Comparison(first, second, len(both), wins, losses, float(both.mean()), float(low), float(high), better)


def interval_of_mean(values: np.ndarray, *, resamples: int = _RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a mean by the bootstrap; not a number of fewer than two values, which tell no spread."""
    if len(values) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(_weights(len(values), resamples, seed) @ values, (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=8)  # all pairs of methods on the same number of records share their resamples
def _weights(count: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Share of each of ``count`` values in each resample, ``(resamples, count)``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count


def _row(label: str, own: pd.DataFrame, backdoored: pd.Series[bool]) -> dict[str, object]:
    attacked, idle = own[backdoored], own[~backdoored]
    low, high = interval_of_mean(attacked["der"].to_numpy(float))
    removed = (attacked["after_asr"] <= REMOVED_ASR) & (
        attacked["before_acc"] - attacked["after_acc"] <= REMOVED_ACC_DROP
    )
    return {
        "label": label,
        "records": len(attacked),
        "before_acc": attacked["before_acc"].mean(),
        "before_asr": attacked["before_asr"].mean(),
        "base_rate": attacked["before_base_rate"].mean(),
        "acc": attacked["after_acc"].mean(),
        "asr": attacked["after_asr"].mean(),
        "ra": attacked["after_ra"].mean(),
        "der": attacked["der"].mean(),
        "der_low": low,
        "der_high": high,
        "removed": int(removed.sum()),
        "seconds": own["seconds"].mean(),
        "spread": own["spread"].max(),
        "idle_records": len(idle),
        "idle_untouched": int((idle["pruned"] == 0).sum()),
        "idle_acc_drop": (idle["before_acc"] - idle["after_acc"]).mean(),
    }
