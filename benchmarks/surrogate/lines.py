"""The lines of the study: one record's measurements each, as plain JSON values. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clp_plugin.files.atomic import finite
from clp_plugin.reports.ranking import BACKDOOR_MARGIN

HALVES = ("development", "held-out")  # settings are chosen on the first, and reported once on the second
GATED = ("u auto", "rounds")
SEE_IMAGES = {"NAD": "nad", "EP": "ep"}  # for scale: name in the catalogue
METHODS = (
    "before", "u=3", "u=3, relative", "u=3, lone convs too", "best u (oracle)", *GATED, *SEE_IMAGES,
)  # fmt: skip
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The latest line of each record and seed, in the order of the file; a line that a crash cut short is passed over."""
    found: dict[tuple[object, ...], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[key_of(row)] = row
    return list(found.values())


def add_row(path: Path, row: Row) -> None:
    """Append a line in one write, on a line of its own even behind one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:  # lines of several processes must not mix
        file.seek(max(0, file.seek(0, 2) - 1))
        broken = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if broken else b"") + json.dumps(finite(row), allow_nan=False).encode() + b"\n")


def key_of(row: Row) -> tuple[object, ...]:
    """What makes two lines the same measurement; the half that a record belongs to is none of it."""
    return row["record"], row["seed"], row["images"]


def name_of(row: Row) -> str:
    """Name of the record's folder."""
    return Path(row["record"]).name


def architecture_of(row: Row) -> str:
    """Name of the architecture, whoever wrote it."""
    return str(row["architecture"]).rpartition(":")[2]


def measured(rows: list[Row]) -> list[Row]:
    """The lines of records that did not fail."""
    return [row for row in rows if "error" not in row]


def works(row: Row) -> bool:
    """Whether the network has a backdoor that works: an ASR well above the base rate."""
    return bool(row["methods"]["before"]["asr"] - row["base_rate"] >= BACKDOOR_MARGIN)


def one_target(row: Row) -> bool:
    """Whether there is a class for the search to name."""
    return row["true_target"] is not None


def as_used(row: Row, method: str) -> Row | None:
    """What a method does to a record: behind the gate, nothing where that is not passed; None if it could not be run."""
    stopped = method in GATED and not row["accepted"]
    before, one = row["methods"]["before"], row["methods"].get(method)
    return {**before, "seconds": one["seconds"]} if stopped and one else one
