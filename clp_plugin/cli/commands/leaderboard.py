"""``bench leaderboard``: all that was run on any records, ranked, tabulated as the paper does, or as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.files.atomic import filled_folder, write_text_atomically
from clp_plugin.files.locks import clear_dead
from clp_plugin.store.analyses import channel_table, sweep_table
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome, load_outcomes

if TYPE_CHECKING:
    import pandas as pd

    from clp_plugin.reports.page.studies import RecordStudy
    from clp_plugin.reports.ranking import Metric

_CELL = (
    "record", "attack", "dataset", "architecture", "method", "implementation", "seed", "protocol", "status", "before_acc",
    "before_asr", "before_base_rate", "after_acc", "after_asr", "after_ra", "der", "seconds", "error",
)  # fmt: skip
_SHOWN = (
    "label", "records", "acc", "asr", "ra", "der", "removed", "seconds", "spread", "idle_records", "idle_acc_drop",
)  # fmt: skip
_PERCENT = {"acc", "asr", "ra", "spread", "idle_acc_drop"}


def show_leaderboard(folders: Sequence[Path], *, sort: str, where: Sequence[str], as_json: bool) -> None:
    """Rank the methods and print them, with what a paired bootstrap says of each pair."""
    from clp_plugin.reports.ranking import REMOVED, compare_methods, leaderboard

    _, frame = _chosen(folders, where)
    metric = cast("Metric", "der" if sort == "der" else f"after_{sort}")
    methods = _plain(leaderboard(frame, sort=metric))
    statements = [each.statement(metric) for each in compare_methods(frame, metric=metric)]
    if as_json:
        emit_json({"cells": _plain(frame[list(_CELL)]), "methods": methods, "statements": statements})
        return
    rows = [[_for_people(name, row[name]) for name in _SHOWN] for row in methods]
    show_table("leaderboard", [f"{name} %" if name in _PERCENT else name for name in _SHOWN], rows)
    for line in (REMOVED, *statements):
        say(line)


def write_tables(
    folders: Sequence[Path],
    out: Path,
    *,
    by: Literal["attack", "poison_rate", "architecture", "dataset"],
    where: Sequence[str],
    as_json: bool,
) -> None:
    """Write the performance table and the seconds, and a figure of the sweeps that lie with the records."""
    from clp_plugin.reports.figures import save_figure
    from clp_plugin.reports.paper import performance_table, sweeps_figure, table_latex, table_markdown, time_table
    from clp_plugin.reports.tables import to_csv

    outcomes, frame = _chosen(folders, where)
    table, seconds = performance_table(frame, by=by), time_table(frame)
    caption = f"ACC and ASR in percent by {by.replace('_', ' ')}, before and after each method."
    sweeps = _sweeps(outcomes, "architecture" if by == "architecture" else "attack")
    with filled_folder(out):
        write_text_atomically(out / "performance.md", table_markdown(table))
        write_text_atomically(out / "performance.tex", table_latex(table, caption))
        to_csv(_flat(table, by), out / "performance.csv")
        to_csv(_flat(seconds, "architecture"), out / "seconds.csv")
        written = ["performance.md", "performance.tex", "performance.csv", "seconds.csv"]
        if sweeps:
            save_figure(sweeps_figure(sweeps), out / "sweeps")
            written += ["sweeps.png", "sweeps.pdf"]
    if not sweeps:
        say("no figure of sweeps: run `bench sweep` on some of the records first")
    if as_json:
        emit_json({"rows": _flat(table, by), "files": written})
    else:
        say(f"wrote {', '.join(written)} to {out}")


def write_page(folders: Sequence[Path], out: Path, *, title: str, where: Sequence[str], as_json: bool) -> None:
    """Write the page; what ``bench correlate`` and ``bench sweep`` stored with a record is on it."""
    from clp_plugin.reports.page.build import page_html

    chosen, _ = _chosen(folders, where)
    studies = [_study(record) for record in _records(chosen)]
    html = page_html(chosen, studies, title=title)
    write_text_atomically(out, html)
    if as_json:
        emit_json({"page": str(out), "runs": len(chosen), "records": len(studies), "bytes": len(html.encode("utf-8"))})
    else:
        say(f"wrote {len(chosen)} runs on {len(studies)} records to {out}")


def _outcomes(folders: Sequence[Path]) -> list[Outcome]:
    """The outcomes of defenses below some folders, each once."""
    for folder in folders:
        clear_dead(folder)
    found = {outcome.model_dump_json(): outcome for folder in folders for outcome in load_outcomes(folder)}
    if not found:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: expected outcomes below, found none; run `bench defend` on some records first"
        )
    return list(found.values())


def _chosen(folders: Sequence[Path], where: Sequence[str]) -> tuple[list[Outcome], pd.DataFrame]:
    """The outcomes below some folders that have all of the values, and the same as a table."""
    outcomes = _outcomes(folders)
    frame = _selected(outcomes_frame(outcomes), where)
    return [outcomes[position] for position in frame.index], frame


def _selected(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Rows that have all of the values.

    Raises:
        ConfigError: If a condition is not ``COLUMN=VALUE``, a column is unknown, or no row is left.
    """
    for condition in where:
        column, sign, value = condition.partition("=")
        if not sign:
            raise ConfigError(f"--where: expected COLUMN=VALUE, such as attack=badnets, found {condition!r}")
        if column not in frame:
            raise ConfigError(f"--where: {unknown_name('column', column, map(str, frame.columns))}")
        held = sorted({str(each) for each in frame[column]})
        frame = frame[frame[column].astype(str) == value]
        if not len(frame):
            raise ConfigError(f"--where {condition}: no outcome has it; there are: {', '.join(held)}")
    return frame


def _records(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """The folder of each record to what its outcomes know of it."""
    return {str(outcome.provenance["path"]): outcome.provenance for outcome in outcomes if "path" in outcome.provenance}


def _study(record: str) -> RecordStudy:
    from clp_plugin.reports.page.studies import RecordStudy

    return RecordStudy(record, channel_table(Path(record)), _sweep(Path(record)))


def _sweeps(outcomes: Iterable[Outcome], by: str) -> dict[str, list[Sequence[dict[str, Any]]]]:
    """Attack or architecture to the sweeps of its records, of those that have one."""
    panels: dict[str, list[Sequence[dict[str, Any]]]] = {}
    for record, facts in _records(outcomes).items():
        if sweep := _sweep(Path(record)):
            panels.setdefault(str(facts.get(by)), []).append(sweep)
    return panels


def _sweep(record: Path) -> list[dict[str, Any]]:
    table = sweep_table(record)
    return [] if table is None else _plain(table)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of plain values; what is missing is None."""
    whole = frame.astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in whole.where(whole.notna(), None).to_dict("records")
    ]


def _flat(table: pd.DataFrame, first: str) -> list[dict[str, Any]]:
    """Rows of a table whose columns may have two names."""
    names = [" ".join(column) if isinstance(column, tuple) else str(column) for column in table.columns]
    plain = table.set_axis(names, axis=1).rename_axis(first).reset_index()
    return _plain(plain)


def _for_people(name: str, value: Any) -> object:
    if value is None:
        return "-"
    return 100 * value if name in _PERCENT else value
