"""``bench compare``: the leaderboard's view of single records, each by name: all that was run on it, in a table and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.cli.commands.chosen import choose
from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.files.atomic import filled_folder, write_text_atomically
from clp_plugin.files.places import folder_to_fill
from clp_plugin.records.opening import locate_record
from clp_plugin.registry import load_catalogue
from clp_plugin.store.analyses import channel_table
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.layout import DEFENSES, LOGS, clear_dead_runs

if TYPE_CHECKING:
    import pandas as pd


def compare_records(
    records: Sequence[Path], out: Path, *, toolbox: str | None, root: Path | None, registry: Path | None, as_json: bool
) -> None:
    """Collect the outcomes below each record, write Markdown, CSV and figures, print.

    Several records also give one table and one figure of records against methods.
    """
    from clp_plugin.reports.comparison import comparison_figure
    from clp_plugin.reports.figures import save_figure
    from clp_plugin.reports.labels import record_names
    from clp_plugin.reports.tables import comparison_rows, outcome_rows, to_csv, to_markdown

    catalogue = load_catalogue(registry)
    paths = [locate_record(record, toolbox=toolbox, root=root, catalogue=catalogue) for record in records]
    folder_to_fill(out)
    for path in paths:
        clear_dead_runs(path)
    frame = outcomes_frame(outcome for path in paths for outcome in choose(_results(path), []).outcomes)
    rows = outcome_rows(frame)
    compared = comparison_rows(rows)
    figure = comparison_figure(frame)
    with filled_folder(out):
        to_csv(rows, out / "comparison.csv")
        write_text_atomically(out / "comparison.md", to_markdown(compared))
        save_figure(figure, out / "comparison")
        written = ["comparison.md, .csv, .png and .pdf"]
        if len(paths) > 1:
            written.append(_write_matrix(frame, out))
        names = record_names(map(str, paths))
        correlations = {names[str(path)]: table for path in paths if (table := channel_table(path)) is not None}
        if correlations:
            written.append(_write_correlations(correlations, out))
    if as_json:
        emit_json({"rows": rows, "uclc_tac": list(correlations)})
        return
    show_table("after repair", *_for_people(compared))
    for row in rows:
        if row["error"]:
            say(f"{row['method']} failed on {row['record']}: {row['error']}")
    lacking = [name for name in names.values() if name not in correlations]
    if lacking:
        say(f"no UCLC-TAC panel for {', '.join(lacking)}: run `bench correlate` on it first")
    say(f"wrote {'; '.join(written)} to {out}")


def _write_matrix(frame: pd.DataFrame, out: Path) -> str:
    """Write the table and the figure of records against methods; returns the names of their files."""
    from clp_plugin.reports.figures import save_figure
    from clp_plugin.reports.matrix import matrix_figure, matrix_markdown

    write_text_atomically(out / "matrix.md", matrix_markdown(frame))
    save_figure(matrix_figure(frame), out / "matrix")
    return "matrix.md, .png and .pdf"


def _write_correlations(correlations: Mapping[str, pd.DataFrame], out: Path) -> str:
    """Write the figure of UCLC against TAC, a panel a record; returns the names of its files."""
    from clp_plugin.reports.comparison import correlation_figure
    from clp_plugin.reports.figures import save_figure

    save_figure(correlation_figure(correlations), out / "uclc_tac")
    return "uclc_tac.png and .pdf"


def _results(record: Path) -> list[Path]:
    """The folders of a record's results; the record may hold many images beside them."""
    return [place for place in (record / DEFENSES, record / LOGS) if place.is_dir()] or [record]


def _for_people(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    percents = ("before_acc", "after_acc", "before_asr", "after_asr")
    shown = ("record", "method", *percents, "der", "seconds")  # the files have more
    columns = [f"{key.replace('_', ' ')} %" if key in percents else key for key in shown]
    cells: list[list[object]] = [
        ["-" if row[key] is None else 100 * row[key] if key in percents else row[key] for key in shown] for row in rows
    ]
    return columns, cells
