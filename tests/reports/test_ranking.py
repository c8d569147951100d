"""A leaderboard averages each attacked model once, keeps models without a backdoor apart, and says when records cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from clp_plugin.errors import ConfigError
from clp_plugin.reports.ranking import compare_methods, leaderboard
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome

Pair = tuple[float, float]


def run(method: str, record: str, *, acc: float, asr: float, before: Pair = (0.9, 1.0), **changes: Any) -> Outcome:
    """One outcome of a method on a record, whose model is known by the record's name."""
    counts = {"n_clean": 100, "n_triggered": 90, "base_rate": 0.02, "ra": 0.5}
    facts: dict[str, Any] = {
        "method": method, "command": "bench defend", "seed": 0, "device": "cpu", "seconds": 1.0,
        "provenance": {"attack": "badnets", "dataset": "d", "architecture": "a", "sha256": record, "path": record},
        "before": {"acc": before[0], "asr": before[1], **counts}, "after": {"acc": acc, "asr": asr, **counts},
        "der": (max(0.0, before[1] - asr) - max(0.0, before[0] - acc) + 1) / 2,
    }  # fmt: skip
    return Outcome(**{**facts, **changes})


def by_label(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in leaderboard(outcomes_frame(outcomes)).to_dict("records")}


def test_many_seeds_on_one_record_do_not_outweigh_another_record() -> None:
    many = [run("clp", "one", acc=0.9, asr=0.0, seed=seed) for seed in range(9)]
    row = by_label([*many, run("clp", "two", acc=0.9, asr=1.0)])["clp"]
    assert row["records"] == 2
    assert row["asr"] == pytest.approx(0.5)


def test_removal_needs_a_low_asr_and_a_small_loss_of_accuracy() -> None:
    runs = [("cheap", 0.86, 0.1), ("costly", 0.84, 0.0), ("stays", 0.9, 0.11)]
    assert by_label([run("clp", name, acc=acc, asr=asr) for name, acc, asr in runs])["clp"]["removed"] == 1


def test_models_without_a_working_backdoor_show_what_a_method_costs_and_nothing_else() -> None:
    clean = run("clp", "clean", acc=0.7, asr=0.0, before=(0.9, 0.1))
    row = by_label([clean, run("clp", "attacked", acc=0.9, asr=0.0)])["clp"]
    assert (row["records"], row["idle_records"]) == (1, 1)
    assert row["acc"] == pytest.approx(0.9)
    assert row["idle_acc_drop"] == pytest.approx(0.2)


def test_the_spread_is_the_range_of_asr_over_seeds_on_one_record() -> None:
    runs = [run("clp", "one", acc=0.9, asr=asr, seed=seed) for seed, asr in enumerate((0.1, 0.4))]
    assert by_label([*runs, run("clp", "two", acc=0.9, asr=0.9)])["clp"]["spread"] == pytest.approx(0.3)


def test_rows_of_an_oracle_stand_apart() -> None:
    assert set(by_label([run("anp", "one", acc=0.9, asr=0.0), run("anp", "one", acc=0.9, asr=0.0, protocol="oracle")])) == {
        "anp", "anp (oracle)",
    }  # fmt: skip


def test_an_unknown_metric_is_told() -> None:
    with pytest.raises(ConfigError, match=r"metric 'speed'.*der"):
        leaderboard(outcomes_frame([run("clp", "one", acc=0.9, asr=0.0)]), sort="speed")  # type: ignore[arg-type]


def test_an_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    pairs = [(float(a), float(b)) for a, b in rng.uniform(0, 0.6, (12, 2))]
    outcomes = [run(name, str(i), acc=0.9, asr=pair[j]) for i, pair in enumerate(pairs) for j, name in enumerate("ab")]
    (found,) = compare_methods(outcomes_frame(outcomes), metric="after_asr")
    differences = np.array([a - b for a, b in pairs])
    theirs = stats.bootstrap((differences,), np.mean, method="percentile")
    assert found.difference == pytest.approx(differences.mean())
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_the_better_method_is_named_only_where_the_records_tell() -> None:
    clear = [
        run(name, str(i), acc=0.9, asr=asr) for i in range(8) for name, asr in (("good", 0.05), ("bad", 0.8 + i / 100))
    ]
    (found,) = compare_methods(outcomes_frame(clear))
    assert (found.better, found.wins, found.ties, found.losses) == ("good", 8, 0, 0)
    mixed = [
        run(n, str(i), acc=0.9, asr=(0.1, 0.9)[(i + j) % 2]) for i in range(8) for j, n in enumerate(("good", "bad"))
    ]
    (found,) = compare_methods(outcomes_frame(mixed))
    assert found.better is None
    assert "cannot tell" in found.statement("der")


def test_only_records_that_both_methods_met_are_compared() -> None:
    shared = [run(name, str(i), acc=0.9, asr=0.1) for i in range(3) for name in ("a", "b")]
    (found,) = compare_methods(outcomes_frame([*shared, run("a", "alone", acc=0.9, asr=1.0)]))
    assert (found.records, found.difference) == (3, 0.0)
