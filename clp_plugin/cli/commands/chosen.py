"""The outcomes that a command of ``bench leaderboard`` works on, and plain rows of tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.files.locks import clear_dead
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome, load_outcomes
from clp_plugin.store.repeats import latest_runs

if TYPE_CHECKING:
    import pandas as pd


class Chosen(NamedTuple):
    """Outcomes below some folders, and the same as a table, row by row."""

    outcomes: list[Outcome]
    frame: pd.DataFrame

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The folder of each record to what its outcomes know of it."""
        found = (outcome.provenance for outcome in self.outcomes)
        return {str(provenance["path"]): provenance for provenance in found if "path" in provenance}


def choose(folders: Sequence[Path], where: Sequence[str]) -> Chosen:
    """The outcomes below some folders that meet all conditions; of a run that was made again only the latest.

    Args:
        folders: Records, or folders that hold records.
        where: Conditions ``COLUMN=VALUE``; of several on one column one must be met.

    Raises:
        ConfigError: If there are none, a condition is not of that form, or a column is unknown.
    """
    for folder in folders:
        clear_dead(folder)
    outcomes = latest_runs(_one_name_a_record(outcome for folder in folders for outcome in load_outcomes(folder)))
    if not outcomes:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: expected outcomes below, found none; run `bench defend` on some records first"
        )
    frame = _selected(outcomes_frame(outcomes), where)
    return Chosen([outcomes[position] for position in frame.index], frame.reset_index(drop=True))


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of plain values; what is missing is None."""
    whole = frame.astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in whole.where(whole.notna(), None).to_dict("records")
    ]


def _one_name_a_record(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same outcomes; of several spellings of one record's folder, such as relative and absolute, all have the first."""
    known: dict[str, str] = {}
    first: dict[str, str] = {}
    for outcome in outcomes:
        path = outcome.provenance.get("path")
        if path and path not in known:
            known[path] = first.setdefault(os.path.realpath(path), path)
        if path and known[path] != path:
            outcome = outcome.model_copy(update={"provenance": {**outcome.provenance, "path": known[path]}})
        yield outcome


def _selected(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    wanted: dict[str, list[str]] = {}
    for condition in where:
        column, sign, value = condition.partition("=")
        if not sign:
            raise ConfigError(f"--where: expected COLUMN=VALUE, such as attack=badnets, found {condition!r}")
        if column not in frame:
            raise ConfigError(f"--where: {unknown_name('column', column, map(str, frame.columns))}")
        wanted.setdefault(column, []).append(value)
    for column, values in wanted.items():
        held = frame[column].astype(str)
        for value in values:
            if value not in set(held):
                there = ", ".join(sorted(set(held)))
                raise ConfigError(f"--where {column}={value}: no outcome has it; there are: {there}")
        frame = frame[held.isin(values)]
    return frame
