"""The cells of a grid on disk: one JSON file a cell, found again by what decides its result."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.files.locks import claimed
from clp_plugin.files.reading import read_json
from clp_plugin.store.outcomes import Outcome, load_outcome, save_outcome
from clp_plugin.types import ChoiceProtocol, Provenance

# Counted up whenever the same fields come to mean something else: what was stored before is then run again.
_IDENTITY_VERSION = 1
_CELLS, _KNOWN, _RESULTS, _RECORDS = "cells", "known", "toolbox", "records"


@dataclass(frozen=True)
class CellKey:
    """All that decides the result of one method on one record; equal keys are the same cell.

    Attributes:
        record: Hash of the record's content, by :func:`clp_plugin.store.content.record_content`.
        method: Name of the defense in the catalogue, or in its toolbox.
        implementation: Owner of the code that runs: ``"clp_plugin"``, or the toolbox.
        options: The options as our own method uses them; as they were asked for, where a toolbox's script fills in the rest.
        seed: Seed of the defense and of the draw of its images.
        protocol: The protocol by which thresholds are chosen.
        n_budget: Number of images that were asked for; None for the usual number.
        version: Version of this package.
    """

    record: str
    method: str
    implementation: str
    options: Mapping[str, Any]
    seed: int
    protocol: ChoiceProtocol
    n_budget: int | None
    version: str

    @property
    def name(self) -> str:
        """A file name for the cell: what people look for, and a hash of everything."""
        text = json.dumps({"identity": _IDENTITY_VERSION, **asdict(self)}, sort_keys=True, default=str)
        short = hashlib.sha256(text.encode()).hexdigest()[:20]
        whose = "" if self.implementation == "clp_plugin" else f"{self.implementation}-"
        return f"{whose}{self.method}-seed{self.seed}-{short}".replace("/", "_")


@dataclass(frozen=True)
class CellStore:
    """The folder of a grid.

    Attributes:
        folder: Holds ``cells/`` (the outcomes), ``known/`` (what records are), ``records/`` (those that attacks made first)
            and ``toolbox/`` (what scripts of a toolbox left).
    """

    folder: Path

    def file(self, key: CellKey) -> Path:
        """The file of a cell's outcome."""
        return self.folder / _CELLS / f"{key.name}.json"

    def toolbox_result(self, key: CellKey) -> Path:
        """The folder of a toolbox's files, apart from the record, so that what its owner ran on it stays as it is."""
        return self.folder / _RESULTS / key.name

    def record(self, name: str) -> Path:
        """The folder in which the record of an attack is made."""
        return self.folder / _RECORDS / name

    def stored(self, key: CellKey) -> Outcome | None:
        """The outcome of a cell, also one that failed; None if it was never run."""
        file = self.file(key)
        return load_outcome(file) if file.is_file() else None

    def save(self, key: CellKey, outcome: Outcome) -> None:
        """Store the outcome of a cell in one step, in place of an earlier one."""
        save_outcome(outcome, self.file(key))

    def claimed(self, key: CellKey) -> AbstractContextManager[None]:
        """Inside the block no other process runs this cell; whoever has to wait finds it stored afterwards."""
        return claimed(self.file(key))

    def remember(self, content: str, provenance: Provenance) -> None:
        """Keep what a record is, so that its cells are known without opening it."""
        place = self.folder / _KNOWN / f"{content}.json"
        if not place.is_file():
            write_json_atomically(place, provenance.to_json())

    def is_new(self) -> bool:
        """Whether no record was in this grid before."""
        known = self.folder / _KNOWN
        return not known.is_dir() or next(known.iterdir(), None) is None

    def known(self, content: str) -> Mapping[str, Any] | None:
        """The facts that :meth:`remember` kept of the record with that content."""
        place = self.folder / _KNOWN / f"{content}.json"
        if not place.is_file():
            return None
        with contextlib.suppress(ConfigError):
            found = read_json(place, raises=ConfigError)
            if isinstance(found, dict) and {"dataset", "toolbox"} <= found.keys():
                return found
        return None  # it is only a shortcut: whoever needs it opens the record
