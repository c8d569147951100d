"""Outcomes from somebody else's machine beside our own: which are new, and of which of our records they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import filled_folder
from clp_plugin.store.outcomes import Outcome, save_outcome

ADDED = "added"
_RUN = ("method", "implementation", "options", "seed", "protocol", "budget")


@dataclass(frozen=True)
class Guest:
    """An outcome that comes from elsewhere.

    Attributes:
        outcome: The outcome, of our record where we have it; its log says under ``added`` where it came from.
        note: A remark on it, for people.
        is_new: Whether it joins; False for a run that is here already.
    """

    outcome: Outcome
    note: str
    is_new: bool


def guests(outcomes: Iterable[Outcome], ours: Iterable[Outcome], *, source: str) -> list[Guest]:
    """Decide what joins.

    A record is known by the hash of its attacked weights, since its folder has another name elsewhere.

    Args:
        outcomes: The outcomes that come from elsewhere.
        ours: The outcomes that are here already, those of earlier guests included.
        source: The place that the outcomes come from, for their log.
    """
    here = list(ours)
    runs = {_run(outcome) for outcome in here}
    records = {outcome.provenance.get("sha256"): outcome for outcome in here if outcome.before is not None}
    found = []
    for outcome in outcomes:
        twin = records.get(outcome.provenance.get("sha256"))
        if _run(outcome) in runs:
            found.append(Guest(outcome, "this run is here already", is_new=False))
            continue
        runs.add(_run(outcome))
        found.append(Guest(_as_ours(outcome, twin, source), _note(outcome, twin), is_new=True))
    return found


def add_guests(found: Iterable[Guest], folder: Path) -> list[Path]:
    """Store the new ones below a leaderboard's folder.

    Returns:
        The files, each named by the hash of what it holds.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    written = []
    with filled_folder(folder / ADDED) as place:
        for guest in found:
            if guest.is_new:
                text = guest.outcome.model_dump_json()
                path = place / f"{guest.outcome.method}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
                save_outcome(guest.outcome, path)
                written.append(path)
    return written


def require_measured(outcomes: Iterable[tuple[Path, Outcome]]) -> None:
    """Refuse outcomes of which nobody could say to which model they belong.

    Raises:
        ConfigError: If one has no hash of its record's weights.
    """
    for path, outcome in outcomes:
        if not outcome.provenance.get("sha256"):
            raise ConfigError(
                f"{path}: expected provenance.sha256, the hash of the attacked weights, found none; not added"
            )


def _run(outcome: Outcome) -> tuple[Any, ...]:
    content = outcome.model_dump(mode="json", include={*_RUN, "after"})
    return outcome.provenance.get("sha256"), repr(sorted(content.items(), key=str))


def _as_ours(outcome: Outcome, twin: Outcome | None, source: str) -> Outcome:
    origin = {"from": source, "path": outcome.provenance.get("path")}
    path = outcome.provenance.get("path") if twin is None else twin.provenance.get("path")
    return outcome.model_copy(
        update={"log": {**outcome.log, "added": origin}, "provenance": {**outcome.provenance, "path": path}}
    )


def _note(outcome: Outcome, twin: Outcome | None) -> str:
    if twin is None:
        return "no outcome here is of this record"
    theirs, ours = outcome.before, twin.before
    if theirs is None or ours is None or theirs == ours:
        return "of a record that is here"
    told = ", ".join(
        f"{key.upper()} {100 * (getattr(theirs, key) or 0):.2f} there and {100 * (getattr(ours, key) or 0):.2f} here"
        for key in ("acc", "asr")
    )
    return f"of a record that is here, judged on other images or by another device: before repair {told}"
