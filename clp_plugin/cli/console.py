"""What the command line shows: tables, progress and errors on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import ClpError

if TYPE_CHECKING:
    from clp_plugin.types import Progress

_STOPPED = 130  # what shells report for Ctrl-C


def command_line() -> str:
    """The command as typed, for outcomes."""
    return shlex.join(["bench", *sys.argv[1:]])


def emit_json(obj: Any) -> None:
    """One JSON object on standard output; NaN and infinities become null."""
    from clp_plugin.files.atomic import finite

    sys.stdout.write(json.dumps(finite(obj), ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """A line for people, on standard error, so that ``--json`` output stays clean."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output; columns after the first are right-aligned where they hold numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        numeric = any(isinstance(row[position], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)


def percent(fraction: float) -> str:
    """For tables only: files and code keep fractions."""
    return f"{100 * fraction:.2f} %"


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar with time left on standard error; where that is no terminal, a line every so often."""
    if not sys.stderr.isatty():
        yield _plain_progress(label)
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _plain_progress(label: str) -> Progress:
    import time

    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 10:
            return
        last = now
        left = (now - start) / max(done, 1) * (total - done)
        say(f"{label}: {done} of {total}, about {left:.0f} s left")

    return report


def run(app: Callable[..., Any], argv: list[str]) -> int:
    """Run the app: a user's mistake is one line and exit code 2, ``--debug`` anywhere shows the traceback."""
    rest = [arg for arg in argv if arg != "--debug"]
    return guarded(lambda: app(rest, standalone_mode=True), debug="--debug" in argv)


def guarded(work: Callable[[], object], *, debug: bool) -> int:
    """Exit code of ``work``: 0, 2 for a user's mistake, 1 for an error nobody planned for, 130 for Ctrl-C."""
    try:
        work()
    except SystemExit as stop:
        if stop.code == _STOPPED:  # typer turns Ctrl-C into this
            return _stopped()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return _stopped()
    except ClpError as error:
        if debug:
            raise
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except Exception as error:
        if debug:
            raise
        say(f"internal error: {type(error).__name__}: {error} (run again with --debug for the traceback)")
        return 1
    return 0


def _stopped() -> int:
    say("stopped; an attack goes on where it was when the same command is given again, anything else starts anew")
    return _STOPPED
