"""``bench leaderboard show``: the methods ranked over all records, on the screen or in a format for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from clp_plugin.cli.commands.chosen import choose, plain_rows
from clp_plugin.cli.console import emit_json, emit_text, say, show_table
from clp_plugin.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from clp_plugin.reports.ranking import Metric

Form = Literal["table", "json", "csv", "markdown", "latex"]
_CELL = (
    "record", "attack", "dataset", "architecture", "method", "label", "implementation", "options", "seed", "protocol", "budget",
    "status", "before_acc", "before_asr", "before_base_rate", "after_acc", "after_asr", "after_ra", "der", "seconds", "pruned",
    "reported_acc", "reported_asr", "reported_ra", "apart", "error",
)  # fmt: skip


def chosen_form(**asked: bool) -> Form:
    """The one form that was asked for, by the names of the options; the table for people if none was.

    Raises:
        ConfigError: If several were.
    """
    forms = [name for name, wanted in asked.items() if wanted]
    if len(forms) > 1:
        raise ConfigError(f"expected one form, found {' and '.join(f'--{name}' for name in forms)}; choose one of them")
    return cast("Form", forms[0]) if forms else "table"


def show_leaderboard(folders: Sequence[Path], *, sort: str, by: str | None, where: Sequence[str], form: Form) -> None:
    """Rank the methods and print them, with what a paired bootstrap says of them."""
    from clp_plugin.reports.board import board_latex, board_markdown, board_numbers

    frame = choose(folders, where).frame
    metric = cast("Metric", "der" if sort == "der" else f"after_{sort}")
    if form == "json":
        emit_json(_for_scripts(frame, by, metric))
    elif form == "csv":
        emit_text(board_numbers(frame, by=by, sort=metric).to_csv(index=False, lineterminator="\n"))
    elif form == "markdown":
        emit_text(board_markdown(frame, by=by, sort=metric))
    elif form == "latex":
        emit_text(board_latex(frame, by=by, sort=metric))
    else:
        _for_people(frame, by, metric)


def _for_scripts(frame: pd.DataFrame, by: str | None, metric: Metric) -> dict[str, Any]:
    from clp_plugin.reports.board import board_groups, statements
    from clp_plugin.reports.labels import method_labels
    from clp_plugin.reports.ranking import leaderboard

    def ranked(own: pd.DataFrame) -> dict[str, Any]:
        return {"methods": plain_rows(leaderboard(own, sort=metric)), "statements": statements(own, metric=metric)}

    cells = plain_rows(frame.assign(label=method_labels(frame))[list(_CELL)])
    groups = {value: ranked(own) for value, own in board_groups(frame, by).items()}
    return {"cells": cells, **ranked(frame), **({} if by is None else {"groups": groups})}


def _for_people(frame: pd.DataFrame, by: str | None, metric: Metric) -> None:
    from clp_plugin.reports.board import board_groups, board_notes, board_rows, reported_rows, said_of_the_best

    for value, own in board_groups(frame, by).items():
        rows = board_rows(own, sort=metric)
        show_table(
            "leaderboard" if value is None else f"{by}: {value}", list(rows[0]), [list(row.values()) for row in rows]
        )
        for line in said_of_the_best(own, metric=metric):
            say(line)
    if told := reported_rows(frame):
        show_table("what toolboxes' scripts measured themselves", list(told[0]), [list(row.values()) for row in told])
    for note in board_notes(frame):
        say(note)
