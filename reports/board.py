"""The leaderboard where people read it: percent, intervals and counts, on the screen, in Markdown and in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from clp_plugin.errors import ConfigError

from .labels import method_labels
from .latex import latex_rows
from .ranking import REMOVED, Metric, compare_methods, leaderboard, per_record
from .tables import markdown_text, to_markdown

BASE = "base rate: clean twins of the triggered images that the attacked model already classifies as the attacker wants"
IDLE = (
    "idle: models without a working backdoor, clean ones or ones on which the attack failed; untouched: those of them on which "
    "the method pruned nothing; ACC drop: mean loss of accuracy on all of them, percentage points"
)
SPREAD = "spread: largest range of ASR over the seeds of one method on one record, percentage points"
INTERVAL = "95 % (der low, der high): interval of the mean DER, by a bootstrap over records"
UNEQUAL = (
    "not all methods here ran on the same records: means over different records cannot be compared; the paired comparisons "
    "take the records that both ran on"
)
NOTES = (REMOVED, BASE, INTERVAL, SPREAD, IDLE)
DASH = "-"


def board_groups(frame: pd.DataFrame, by: str | None) -> dict[str | None, pd.DataFrame]:
    """The outcomes of each value of a column that has some with metrics, in the order of appearance.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.
        by: A column of it; None for all outcomes together, under the name None.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    if not frame["after_acc"].notna().any():
        raise ConfigError("a leaderboard needs at least one outcome with metrics, found none; run some methods first")
    if by is None:
        return {None: frame}
    groups = frame.groupby(frame[by].astype(object).where(frame[by].notna(), "unknown"), sort=False)
    return {str(value): own for value, own in groups if own["after_acc"].notna().any()}


def board_rows(frame: pd.DataFrame, *, sort: Metric = "der") -> list[dict[str, str]]:
    """The leaderboard as text, a row a method, the best first.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.
        sort: The metric that orders the rows.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    return [
        {
            "method": str(row["label"]),
            "base rate %": _percent(row["base_rate"]),
            "ACC %": _percent(row["acc"]),
            "ASR %": _percent(row["asr"]),
            "RA %": _percent(row["ra"]),
            "DER": _number(row["der"], "{:.3f}"),
            "95 %": _interval(row),
            "removed": f"{row['removed']} of {row['records']}",
            "seconds": _number(row["seconds"], "{:.3g}"),
            "spread": _percent(row["spread"]),
            "idle untouched": f"{row['idle_untouched']} of {row['idle_records']}",
            "idle ACC drop": _percent(row["idle_acc_drop"]),
        }
        for row in leaderboard(frame, sort=sort).to_dict("records")
    ]


def board_numbers(frame: pd.DataFrame, *, by: str | None, sort: Metric = "der") -> pd.DataFrame:
    """All columns of :func:`~clp_plugin.reports.ranking.leaderboard` as numbers, of all groups below each other."""
    tables = []
    for value, own in board_groups(frame, by).items():
        table = leaderboard(own, sort=sort)
        if by is not None:
            table.insert(0, by, value)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def board_markdown(frame: pd.DataFrame, *, by: str | None, sort: Metric = "der") -> str:
    """One Markdown table, or one a group under a heading, and what the columns mean."""
    tables = (
        ("" if value is None else f"## {by}: {markdown_text(value)}\n\n") + to_markdown(board_rows(own, sort=sort))
        for value, own in board_groups(frame, by).items()
    )
    return "\n".join([*tables, *(f"{note}\n" for note in board_notes(frame))])


def board_latex(frame: pd.DataFrame, *, by: str | None, sort: Metric = "der") -> str:
    """One LaTeX table with booktabs, or one a group, whose captions say what the columns mean."""
    return "\n".join(
        latex_rows(
            board_rows(own, sort=sort), "; ".join([*([] if value is None else [f"{by}: {value}"]), *board_notes(own)])
        )
        for value, own in board_groups(frame, by).items()
    )


def board_notes(frame: pd.DataFrame) -> tuple[str, ...]:
    """What the columns of :func:`board_rows` mean, and whether its rows are of the same records."""
    records = per_record(frame).groupby("label")["sha256"].agg(frozenset)
    return (*NOTES, UNEQUAL) if records.nunique() > 1 else NOTES


def said_of_the_best(frame: pd.DataFrame, *, metric: Metric = "der") -> list[str]:
    """Sentences of a paired bootstrap on the best method against each other one, in the order of the leaderboard.

    The best is the first that shares records with another: what was run on a record of its own is compared with nothing.
    """
    order = [str(label) for label in leaderboard(frame, sort=metric)["label"]]
    found = {frozenset((each.first, each.second)): each for each in compare_methods(frame, metric=metric)}
    best = next((label for label in order if any(label in pair for pair in found)), "")
    pairs = (frozenset((best, other)) for other in order)
    return [found[pair].statement(metric) for pair in pairs if pair in found]


def statements(frame: pd.DataFrame, *, metric: Metric = "der") -> list[str]:
    """Sentences of a paired bootstrap on every pair of methods."""
    return [each.statement(metric) for each in compare_methods(frame, metric=metric)]


def reported_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Beside what was measured here, what a toolbox's own script measured and stored: a row an outcome that has such numbers.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.
    """
    keys = ("acc", "asr", "ra")
    labelled = frame.assign(label=method_labels(frame))
    told = labelled[labelled[[f"reported_{key}" for key in keys]].notna().any(axis=1)].astype(object)
    columns = ["record", "label", "seed", *(f"{when}_{key}" for key in keys for when in ("after", "reported")), "apart"]
    plain = told[columns].where(told[columns].notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def _percent(value: float) -> str:
    return _number(100 * value, "{:.1f}")


def _number(value: float, form: str) -> str:
    return DASH if math.isnan(value) else form.format(value)


def _interval(row: Mapping[Hashable, Any]) -> str:
    return DASH if math.isnan(row["der_low"]) else f"{row['der_low']:.2f}–{row['der_high']:.2f}"
