"""Outcomes as a table, one row each: what every report is drawn from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from clp_plugin.store.outcomes import Outcome, StoredMetrics

if TYPE_CHECKING:
    import pandas as pd

_ALL_TO_ALL = "all to all"  # so begins such a rule, told to people


def outcomes_frame(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One row an outcome; fractions stay fractions. An all-to-all attack is told apart by its name: ``badnets (all to all)``.

    Returns:
        Columns ``attack, dataset, architecture, poison_rate, toolbox, sha256, record, method, implementation, options, seed,
        protocol, budget, status, error, seconds, pruned``, then ``before_*`` and ``after_*`` for each metric, ``der``,
        ``reported_acc, reported_asr, reported_ra`` (a toolbox's own numbers), ``apart`` (the most test images on which one of
        them differs from ours) and ``created``.
    """
    import pandas as pd

    given = list(outcomes)
    rules = _rules(given)
    rows = [_row(outcome, rules) for outcome in given]
    frame = pd.DataFrame(rows, columns=list(_row(_EMPTY, {})))
    # Whole numbers stay whole beside missing ones.
    return frame.astype({"seed": "Int64", "pruned": "Int64", "apart": "Int64"})


def _rules(outcomes: Iterable[Outcome]) -> dict[object, str]:
    """What an attacker wants, by the hash of the attacked model; earlier outcomes of it do not say so themselves."""
    origins = (outcome.provenance for outcome in outcomes)
    return {origin.get("sha256"): str(origin["target"]) for origin in origins if origin.get("target")}


def _row(outcome: Outcome, rules: Mapping[object, str]) -> dict[str, Any]:
    origin = outcome.provenance
    row: dict[str, Any] = {
        key: origin.get(key) for key in ("attack", "dataset", "architecture", "poison_rate", "toolbox", "sha256")
    }
    rule = rules.get(origin.get("sha256"), "")
    if rule.startswith(_ALL_TO_ALL):  # another attack than the one of the same name on a single class
        row["attack"] = f"{row['attack']} ({rule})"
    row["record"] = origin.get("path")
    row["options"] = json.dumps(outcome.options, sort_keys=True, default=str)
    for key in ("method", "implementation", "seed", "protocol", "budget", "status", "error", "seconds", "pruned"):
        row[key] = getattr(outcome, key)
    for when, metrics in (("before", outcome.before), ("after", outcome.after)):
        values: Mapping[str, Any] = metrics.model_dump() if metrics else {}
        row |= {f"{when}_{key}": values.get(key) for key in StoredMetrics.model_fields}
    return {
        **row,
        "der": outcome.der,
        **{f"reported_{key}": (outcome.reported or {}).get(key) for key in ("acc", "asr", "ra")},
        "apart": max(outcome.images_apart.values(), default=None),
        "created": outcome.created,
    }


_EMPTY = Outcome(method="", command="", seed=None, device="", seconds=0, versions={}, created="")
