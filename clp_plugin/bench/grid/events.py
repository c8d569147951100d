"""The events that an executor tells while a grid runs; plain values, as they come from other processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clp_plugin.store.outcomes import Outcome


@dataclass(frozen=True)
class Started:
    """Work on a part of a record's task has begun.

    Attributes:
        record: The record's folder.
        doing: The step that is being done, for people.
        cell: File name of the cell that runs; empty while the record is made, opened or judged.
    """

    record: str
    doing: str
    cell: str = ""


@dataclass(frozen=True)
class Progressed:
    """How far the part is that was started last.

    Attributes:
        record: The record's folder.
        done: Number of steps done.
        total: Steps in all.
    """

    record: str
    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """A cell is stored.

    Attributes:
        record: The record's folder.
        label: The cell, for people.
        outcome: The stored outcome of the cell.
        kept: Whether it was there already.
    """

    record: str
    label: str
    outcome: Outcome
    kept: bool = False


@dataclass(frozen=True)
class Closed:
    """No more cells will come of a record.

    Attributes:
        record: The record's folder.
        error: Why it could not be made or opened, or what killed its worker; empty if all went its way.
    """

    record: str
    error: str = ""


Event = Started | Progressed | Ended | Closed
Told = Callable[[Event], object]
