"""Runs that were made several times, by older versions of this package or after a failure: only the latest counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from clp_plugin.store.outcomes import Outcome


def latest_runs(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The latest outcome of each run, in the order of the first of each.

    A run is one method with its options, seed, protocol and budget on one record in one place. A failure is forgotten once
    the same run has ended well; it does not say its budget, so any will do.

    Args:
        outcomes: Outcomes of any records.
    """
    latest: dict[tuple[Any, ...], Outcome] = {}
    ended_well: dict[tuple[Any, ...], str] = {}
    for outcome in outcomes:
        run = _run(outcome)
        key = (*run, outcome.budget if outcome.status == "ok" else None)
        if key not in latest or outcome.created >= latest[key].created:
            latest[key] = outcome
        if outcome.status == "ok":
            ended_well[run] = max(outcome.created, ended_well.get(run, ""))
    return [
        outcome
        for outcome in latest.values()
        if outcome.status == "ok" or outcome.created > ended_well.get(_run(outcome), "")
    ]


def _run(outcome: Outcome) -> tuple[Any, ...]:
    origin = outcome.provenance
    options = json.dumps(outcome.options, sort_keys=True, default=str)
    return (
        origin.get("sha256"), origin.get("path"), outcome.method, outcome.implementation, options, outcome.seed,
        outcome.protocol,
    )  # fmt: skip
