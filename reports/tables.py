"""Tables of outcomes and sweeps: fractions in files, percent where people read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clp_plugin.files.atomic import write_atomically
from clp_plugin.text import printable

from .labels import method_labels, record_names

_FRACTIONS = ("acc", "asr", "ra", "base_rate", "der", "poison_rate")
_SHOWN = (
    "record", "attack", "dataset", "architecture", "method", "seed", "protocol", "budget", "before_acc", "after_acc",
    "before_asr", "after_asr", "before_ra", "after_ra", "base_rate", "der", "pruned", "seconds", "reported_acc", "reported_asr",
    "reported_ra", "apart", "status", "error",
)  # fmt: skip
_COMPARED = (
    "record", "method", "before_acc", "after_acc", "before_asr", "after_asr", "after_ra", "der", "seconds", "apart",
    "budget", "error",
)  # fmt: skip


def outcome_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row an outcome with what a reader compares; fractions in [0, 1], None where there is nothing.

    The method of an outcome is named by :func:`~clp_plugin.reports.labels.method_label`, its record by the name of
    its folder, numbered where several have it.

    Args:
        frame: Outcomes as :func:`clp_plugin.store.frame.outcomes_frame` returns them; it is not changed.
    """
    names = record_names(folders := frame["record"].fillna("").astype(str))
    frame = frame.astype(object)
    frame["base_rate"] = frame["before_base_rate"]
    frame = frame.where(frame.notna(), None)
    rows = [{str(key): row[key] for key in _SHOWN} for row in frame.to_dict("records")]
    for row, label, folder in zip(rows, method_labels(frame), folders, strict=True):
        row["method"], row["record"] = label, names[folder]
    return rows


def comparison_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Shorter rows of :func:`outcome_rows`, for pages: what was attacked, by which method repaired, what came of it."""
    return [{key: row[key] for key in _COMPARED} for row in rows]


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with aligned columns; fractions become percent, and their headings say so.

    Args:
        rows: Rows of :func:`outcome_rows`, or of a sweep; the columns are the keys of the first row.
    """
    if not rows:
        return "(no rows)\n"
    columns = list(rows[0])
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    heads = [f"{column} %" if _is_fraction(column) else column for column in columns]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(columns))]
    numeric = [all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns]
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    lines = [
        " | ".join(
            text.rjust(w) if right else text.ljust(w) for text, w, right in zip(line, widths, numeric, strict=True)
        )
        for line in [heads, rule, *cells]
    ]
    return "".join(f"| {line} |\n" for line in lines)


def to_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV in one step, numbers in full precision and fractions as fractions.

    Raises:
        ConfigError: If the file cannot be written.
    """
    frame = pd.DataFrame([{name: _no_formula(value) for name, value in row.items()} for row in rows])
    write_atomically(path, lambda file: frame.to_csv(file, index=False, lineterminator="\n", errors="backslashreplace"))


def _is_fraction(column: str) -> bool:
    when, _, metric = column.partition("_")
    return column in _FRACTIONS or (when in ("before", "after", "reported") and metric in _FRACTIONS)


def _cell(column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if _is_fraction(column):
        return f"{100 * float(value):.1f}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return markdown_text(value)


def markdown_text(value: object) -> str:
    """Text for a cell of a Markdown table: one line, no bar that would end the cell, no tag."""
    return printable(str(value).replace("\n", " ")).replace("|", "\\|").replace("<", "&lt;")


def _no_formula(value: Any) -> Any:
    """A spreadsheet takes text that begins so for a formula, and runs it; with an apostrophe before it, it stays text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
