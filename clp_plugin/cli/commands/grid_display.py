"""Showing people, or machines, how a grid runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clp_plugin.bench.grid.events import Closed, Ended, Event, Progressed, Started
from clp_plugin.cli.console import emit_json, say, terminal_bars
from clp_plugin.store.outcomes import Outcome
from clp_plugin.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Line = Callable[[str, Outcome], None]


class Display:
    """Counts what happens, and shows a line a cell that was run."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._counted: set[tuple[str, str]] = set()
        self.done = self.kept = 0
        self.failed: list[tuple[str, str]] = []  # cells, each with its error
        self.lost: dict[str, str] = {}  # record to what kept it from being made, opened or finished

    def __call__(self, event: Event) -> None:
        """Take note of what an executor tells."""
        if isinstance(event, Ended) and event.kept:
            self.keep(event)
        elif isinstance(event, Ended):
            self.done += 1
            self._note(event)
            self._line(event.label, event.outcome)
        elif isinstance(event, Closed) and event.error:
            self.lost[event.record] = event.error

    def keep(self, event: Ended) -> None:
        """Take note of a cell that was there already; a worker that follows a dead one meets those of its own grid."""
        if (event.record, event.label) not in self._counted:
            self.kept += 1
            self._note(event)

    def counts(self) -> dict[str, int]:
        """How many cells there are, were run now, were there already and failed."""
        return {"cells": self.done + self.kept, "ran": self.done, "kept": self.kept, "failed": len(self.failed)}

    def _note(self, event: Ended) -> None:
        self._counted.add((event.record, event.label))
        if event.outcome.error is not None:
            self.failed.append((event.label, event.outcome.error))


@contextlib.contextmanager
def display(cells: int, *, as_json: bool) -> Iterator[Display]:
    """The display that fits the reader: bars on a terminal, lines elsewhere, one JSON object a line for machines.

    Args:
        cells: Number of cells, as far as it is known.
        as_json: Write for machines.
    """
    if as_json:
        yield Display(lambda label, outcome: emit_json(_for_machines(label, outcome)))
    elif not sys.stderr.isatty():
        yield _Lines(cells)
    else:
        with terminal_bars() as bars:
            yield _Bars(bars, cells)


class _Lines(Display):
    """A line a cell, numbered so that a log tells how far it is."""

    def __init__(self, cells: int) -> None:
        super().__init__(lambda label, outcome: say(f"[{self.done + self.kept}/{cells}] {_for_people(label, outcome)}"))


class _Bars(Display):
    """A bar for the whole grid and one for each record that is being worked on."""

    def __init__(self, bars: Bars, cells: int) -> None:
        super().__init__(lambda label, outcome: bars.console.print(_for_people(label, outcome), markup=False))
        self._bars, self._whole = bars, bars.add_task("cells", total=cells)
        self._records: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Started):
            text = printable(event.doing if event.cell else f"{Path(event.record).name}: {event.doing}")
            if event.record not in self._records:
                self._records[event.record] = self._bars.add_task(text, total=None)
            self._bars.reset(self._records[event.record], total=None, description=text)
        elif isinstance(event, Progressed):
            self._bars.update(self._records[event.record], completed=event.done, total=event.total)
        elif isinstance(event, Closed) and event.record in self._records:
            self._bars.remove_task(self._records.pop(event.record))
        self._bars.update(self._whole, completed=self.done + self.kept, description=self._told())

    def keep(self, event: Ended) -> None:
        super().keep(event)
        self._bars.update(self._whole, completed=self.done + self.kept, description=self._told())

    def _told(self) -> str:
        failed = len(self.failed) + len(self.lost)
        return f"cells, {failed} failed" if failed else "cells"


def _for_people(label: str, outcome: Outcome) -> str:
    if outcome.before is None or outcome.after is None:
        return printable(f"{label}: failed: {outcome.error}")
    changes = ", ".join(
        f"{key.upper()} {100 * (getattr(outcome.before, key) or 0):.1f} -> {100 * (getattr(outcome.after, key) or 0):.1f}"
        for key in ("acc", "asr")
    )
    return printable(f"{label}: {changes}, {outcome.seconds:.1f} s")


def _for_machines(label: str, outcome: Outcome) -> dict[str, object]:
    after = {} if outcome.after is None else outcome.after.model_dump()
    return {
        "cell": label,
        "record": outcome.provenance.get("path"),
        "method": outcome.method,
        "implementation": outcome.implementation,
        "seed": outcome.seed,
        "protocol": outcome.protocol,
        "status": outcome.status,
        "error": outcome.error,
        **{key: after.get(key) for key in ("acc", "asr", "ra")},
        "der": outcome.der,
        "seconds": outcome.seconds,
    }
