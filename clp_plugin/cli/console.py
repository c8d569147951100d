"""What the command line shows: tables, progress and errors on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from clp_plugin.errors import ClpError, ConfigError
from clp_plugin.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from clp_plugin.types import Progress

_STOPPED = 130  # what shells report for Ctrl-C


def command_line() -> str:
    """The command as typed, for outcomes."""
    return shlex.join(["bench", *sys.argv[1:]])


class ReaderGoneError(Exception):
    """Whoever read standard output has seen enough and closed it."""


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Write to standard output; what is written has arrived when the block ends.

    Raises:
        ReaderGoneError: If the reader closed the pipe.
        ConfigError: If it cannot be written, such as a full disk.
    """
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise ConfigError(f"cannot write to standard output: {error.strerror}") from error


def emit_json(obj: Any) -> None:
    """Print one JSON object on standard output; NaN and infinities become null."""
    from clp_plugin.files.atomic import finite

    text = json.dumps(finite(obj), ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # an ASCII terminal, or a file name that is no text
        text = json.dumps(finite(obj))
    with standard_output() as out:
        out.write(text + "\n")


def emit_text(text: str) -> None:
    """A document on standard output, such as a table in Markdown."""
    with standard_output() as out:
        out.write(text)


def say(text: str) -> None:
    """Lines for people, on standard error, so that ``--json`` output stays clean."""
    lines = [printable(line) for line in text.split("\n")]
    with contextlib.suppress(BrokenPipeError):  # nobody listens; the work goes on
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output; columns after the first are right-aligned where they hold numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left")
    for position, column in enumerate(columns):
        numeric = any(isinstance(row[position], (int, float)) for row in rows)
        table.add_column(Text(printable(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = (f"{cell:.2f}" if isinstance(cell, float) else printable(cell) for cell in row)
        table.add_row(*map(Text, cells))
    with standard_output() as out:
        console = Console(file=out)
        if not console.is_terminal:
            console = Console(file=out, width=120)
        console.print(table)


def percent(fraction: float) -> str:
    """Show a fraction in percent, for tables only: files and code keep fractions."""
    return f"{100 * fraction:.2f} %"


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar with time left on standard error; where that is no terminal, a line every so often."""
    if not sys.stderr.isatty():
        yield _plain_progress(label)
        return
    with terminal_bars() as bars:
        task = bars.add_task(printable(label), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextlib.contextmanager
def terminal_bars() -> Iterator[Bars]:
    """Bars with time left on standard error, a line each, which are gone when the block ends."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield bars


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

    def work() -> None:
        refuse_empty_values(rest)
        app(rest, standalone_mode=True)

    return guarded(work, debug="--debug" in argv)


def refuse_empty_values(argv: Sequence[str]) -> None:
    """No option has a meaning without a value; an empty path would be the current folder.

    Raises:
        ConfigError: If a word of the command line is empty, or an option's value is.
    """
    for before, word in zip(["the first word", *argv], argv, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise ConfigError(f"{word.rstrip('=') or before}: expected a value, found nothing")


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
    except ReaderGoneError:
        _forget_output()
    except ClpError as error:
        if debug:
            raise
        return _mistake(str(error))
    except OSError as error:  # names that are too long, folders that nobody may enter: of the place, not of this code
        if debug:
            raise
        if error.filename is None:
            return _internal(error)
        return _mistake(
            f"cannot use {error.filename}: {error.strerror}; check the path, its permissions and free space"
        )
    except Exception as error:
        if debug:
            raise
        return _internal(error)
    return 0


def _mistake(message: str) -> int:
    say(f"error: {' '.join(message.split())}")
    return 2


def _internal(error: Exception) -> int:
    told = " ".join(str(error).split())
    say(f"internal error: {type(error).__name__}: {told} (run again with --debug for the traceback)")
    return 1


def prepare_streams() -> None:
    """Make the standard streams take any text, and be there where the caller closed them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """The interpreter flushes standard output when it ends, and must not fail on the closed pipe again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stopped() -> int:
    say(
        "stopped; when the same command is given again, an attack or a leaderboard run goes on where it was, "
        "anything else starts anew"
    )
    return _STOPPED
