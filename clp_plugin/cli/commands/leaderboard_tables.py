"""``bench leaderboard tables``: the paper's tables and figures, and the comparison of methods, for anybody's own records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clp_plugin.cli.commands.chosen import Chosen, choose, plain_rows
from clp_plugin.cli.console import emit_json, say
from clp_plugin.files.atomic import filled_folder, write_text_atomically
from clp_plugin.store.analyses import channel_table, sweep_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Row = Literal["attack", "record", "poison_rate", "architecture", "dataset"]


def write_tables(
    folders: Sequence[Path], out: Path, *, by: Row, where: Sequence[str], critical_difference: bool, as_json: bool
) -> None:
    """Write all tables and figures that the outcomes, and what else was measured of their records, give.

    Args:
        folders: Records, or folders that hold records.
        out: The folder to fill.
        by: The column that makes the rows of the performance table.
        where: Conditions that the outcomes must meet.
        critical_difference: Whether to draw the methods' mean ranks too.
        as_json: Whether to print for scripts.
    """
    from clp_plugin.reports.figures import save_figure
    from clp_plugin.reports.tables import to_csv

    chosen = choose(folders, where)
    figures = _figures(chosen, by, critical_difference=critical_difference)
    texts, rows = _tables(chosen.frame, by)
    with filled_folder(out):
        for name, text in texts.items():
            write_text_atomically(out / name, text)
        for name, each in rows.items():
            to_csv(each, out / name)
        drawn = [path.name for name, figure in figures.items() for path in save_figure(figure, out / name)]
    lacking = [
        what for what in ("sweep", "correlate") if not any(name.startswith(_DRAWN_FROM[what]) for name in figures)
    ]
    for command in lacking:
        say(f"no figure from `bench {command}`: run it on some of the records first")
    written = [*texts, *rows, *drawn]
    if as_json:
        emit_json({"rows": rows["performance.csv"], "files": written})
    else:
        say(f"wrote {', '.join(written)} to {out}")


_DRAWN_FROM = {"sweep": "sweeps", "correlate": "uclc_tac"}


def _tables(frame: pd.DataFrame, by: Row) -> tuple[dict[str, str], dict[str, list[dict[str, Any]]]]:
    """File name to text, and file name to rows."""
    from clp_plugin.reports.board import reported_rows
    from clp_plugin.reports.latex import latex_rows
    from clp_plugin.reports.matrix import matrix_markdown
    from clp_plugin.reports.paper import gaps, performance_table, rates_table, table_latex, table_markdown, time_table
    from clp_plugin.reports.tables import outcome_rows, to_markdown

    table, seconds = performance_table(frame, by=by), _flat(time_table(frame), "architecture")
    caption = f"ACC and ASR in percent by {by.replace('_', ' ')}, before and after each method"
    missing = f"Not run on all records of a row: {'; '.join(lacking)}." if (lacking := gaps(frame, by=by)) else ""
    texts = {
        "performance.md": table_markdown(table) + (f"\n{missing}\n" if missing else ""),
        "performance.tex": table_latex(table, f"{caption}. {missing}" if missing else caption),
        "seconds.md": to_markdown(seconds),
        "seconds.tex": latex_rows(seconds, "Mean seconds of each method itself, without loading and evaluation"),
        "matrix.md": matrix_markdown(frame),
    }
    rows = {"performance.csv": _flat(table, by), "seconds.csv": seconds, "outcomes.csv": outcome_rows(frame)}
    if rates := rates_table(frame):
        texts["poison_rates.md"], rows["poison_rates.csv"] = to_markdown(rates), rates
        texts["poison_rates.tex"] = latex_rows(
            rates, "ACC and ASR in percent by poisoning rate, before and after each method"
        )
    if told := reported_rows(frame):
        texts["reported.md"], rows["reported.csv"] = to_markdown(told), told
    return texts, rows


def _figures(chosen: Chosen, by: Row, *, critical_difference: bool) -> dict[str, Figure]:
    """File name without suffix to figure."""
    from clp_plugin.reports.comparison import correlation_figure
    from clp_plugin.reports.critical import critical_difference_figure
    from clp_plugin.reports.labels import record_names
    from clp_plugin.reports.matrix import matrix_figure
    from clp_plugin.reports.paper import channels_figure, sweeps_figure
    from clp_plugin.reports.ranking import has_backdoor, per_record
    from clp_plugin.reports.tradeoffs import cost_figure, effectiveness_figure, tradeoff_figure

    figures = {"matrix": matrix_figure(chosen.frame)}
    if has_backdoor(per_record(chosen.frame)).any():
        figures |= {
            "tradeoff": tradeoff_figure(chosen.frame),
            "effectiveness": effectiveness_figure(chosen.frame),
            "cost": cost_figure(chosen.frame),
        }
    if critical_difference:
        figures["critical_difference"] = critical_difference_figure(chosen.frame)
    if sweeps := _sweeps(chosen.frame, by):
        figures["sweeps"] = sweeps_figure(sweeps)
    channels = {path: table for path in chosen.records if (table := channel_table(Path(path))) is not None}
    if channels:
        names = record_names(channels)
        figures["uclc_tac"] = correlation_figure({names[path]: table for path, table in channels.items()})
        figures |= {f"uclc_tac-{names[path]}": channels_figure(table) for path, table in channels.items()}
    return figures


def _sweeps(frame: pd.DataFrame, by: Row) -> dict[str, list[Sequence[dict[str, Any]]]]:
    """Title of a panel, an attack where nothing else is asked for, to the sweeps of its records, of those that have one."""
    from clp_plugin.reports.labels import attacked_names

    records = frame.dropna(subset="record").drop_duplicates("record")
    titles = (
        attacked_names(records) if by == "record" else records["architecture" if by == "architecture" else "attack"]
    )
    panels: dict[str, list[Sequence[dict[str, Any]]]] = {}
    for record, title in zip(records["record"], titles, strict=True):
        if (table := sweep_table(Path(record))) is not None:
            panels.setdefault(str(title), []).append(plain_rows(table))
    return panels


def _flat(table: pd.DataFrame, first: str) -> list[dict[str, Any]]:
    """Rows of a table whose columns may have two names."""
    names = [" ".join(column) if isinstance(column, tuple) else str(column) for column in table.columns]
    return plain_rows(table.set_axis(names, axis=1).rename_axis(first).reset_index())
