"""Of a run that was made several times only the latest counts."""

from __future__ import annotations

from typing import Any

from clp_plugin.store.outcomes import Outcome
from clp_plugin.store.repeats import latest_runs


def outcome(day: int, **more: Any) -> Outcome:
    facts = {
        "method": "clp", "command": "", "seed": 0, "device": "cpu", "seconds": day, "options": {"u": 3.0}, "budget": "none",
        "created": f"2026-11-{day:02d}T00:00:00+00:00", "provenance": {"sha256": "a", "path": "runs/a"},
    }  # fmt: skip
    return Outcome.model_validate({**facts, **more})


def test_the_latest_of_the_same_run_counts_whatever_version_made_it() -> None:
    old, new = outcome(1, versions={"clp_plugin": "0.1"}), outcome(2, versions={"clp_plugin": "0.2"})
    assert latest_runs([new, old]) == latest_runs([old, new]) == [new]


def test_whatever_tells_runs_apart_keeps_them_apart() -> None:
    runs = [
        outcome(1), outcome(1, options={"u": 2.0}), outcome(1, seed=1), outcome(1, protocol="oracle"),
        outcome(1, budget="benign:100"), outcome(1, method="bnp"), outcome(1, implementation="backdoorbench"),
        outcome(1, provenance={"sha256": "b", "path": "runs/a"}), outcome(1, provenance={"sha256": "a", "path": "runs/b"}),
    ]  # fmt: skip
    assert latest_runs(runs) == runs


def test_a_failure_is_forgotten_once_the_run_has_ended_well_and_told_if_it_failed_since() -> None:
    failed = {"status": "failed", "error": "no"}
    well = outcome(2, budget="benign:500")
    assert latest_runs([outcome(1, **failed), well]) == [well]
    assert latest_runs([well, outcome(3, **failed)]) == [well, outcome(3, **failed)]
