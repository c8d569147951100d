"""What a toolbox adapter offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clp_plugin.types import Record


@dataclass(frozen=True)
class RecordListing:
    """One line of ``bench list records``.

    Attributes:
        path: The record's folder.
        summary: Attack, dataset and architecture, for people; for an incomplete record, what is missing.
        complete: Whether :meth:`Adapter.open` can open it.
    """

    path: Path
    summary: str
    complete: bool


class Adapter(Protocol):
    """Reads one toolbox's records. Adapters know no defense."""

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a record of this toolbox, judged by its files' names, without loading any."""
        ...

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record.

        Args:
            path: The record's folder.
            trust: Allow pickles that run code.

        Raises:
            RecordError: If the record is missing or incomplete.
            CheckpointError: If its weights cannot be read safely or do not fit.
        """
        ...

    def records(self, root: Path) -> Iterator[RecordListing]:
        """Records directly under ``root``, complete or not."""
        ...
