"""``bench leaderboard add``: outcomes of somebody else join, checked and with their origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.errors import ConfigError
from clp_plugin.store.joining import Guest, add_guests, guests, require_measured
from clp_plugin.store.outcomes import Outcome, load_outcome, load_outcomes


def add_outcomes(sources: Sequence[Path], to: Path, *, as_json: bool) -> None:
    """Read all, then store what is new; a file that is no outcome stops the whole."""
    given = [(path, outcome) for source in sources for path, outcome in _read(source)]
    require_measured(given)
    ours = load_outcomes(to) if to.is_dir() else []
    found = guests([outcome for _, outcome in given], ours, source=", ".join(map(str, sources)))
    written = add_guests(found, to)
    rows = [_row(guest) for guest in found]
    if as_json:
        emit_json({"added": len(written), "outcomes": rows, "files": [str(path) for path in written]})
        return
    columns = ("method", "attack", "architecture", "weights", "made by", "on", "note")
    show_table("outcomes from elsewhere", columns, [[row[column] for column in columns] for row in rows])
    say(f"added {len(written)} of {len(rows)} outcomes to {to}")


def _read(source: Path) -> list[tuple[Path, Outcome]]:
    if source.is_file():
        return [(source, load_outcome(source))]
    found = load_outcomes(source)
    if not found:
        raise ConfigError(f"{source}: expected outcomes (*.json) in this folder or below, found none")
    return [(source, outcome) for outcome in found]


def _row(guest: Guest) -> dict[str, object]:
    outcome, origin = guest.outcome, guest.outcome.provenance
    return {
        "method": outcome.method,
        "attack": origin.get("attack"),
        "architecture": origin.get("architecture"),
        "weights": str(origin.get("sha256"))[:12],
        "made by": f"clp-plugin {outcome.versions.get('clp_plugin', '?')}, torch {outcome.versions.get('torch', '?')}",
        "on": outcome.created[:10],
        "note": guest.note,
        "is_new": guest.is_new,
    }
