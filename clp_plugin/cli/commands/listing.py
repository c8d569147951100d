"""``bench list``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clp_plugin.cli.console import emit_json, show_table
from clp_plugin.errors import ClpError
from clp_plugin.files.locks import clear_dead
from clp_plugin.imports import import_object
from clp_plugin.registry import Entry, Kind, load_catalogue

if TYPE_CHECKING:
    from clp_plugin.records.exchange import ToolboxPresence


def list_catalogue(kind: str, *, registry: Path | None, as_json: bool) -> None:
    """Entries of one section, with who offers them."""
    section = cast(Kind, kind)
    catalogue = load_catalogue(registry)
    entries = {name: catalogue.entry(section, name) for name in catalogue.names(section)}
    told = {name: _presence(entry) for name, entry in entries.items()} if kind == "toolboxes" else {}
    if as_json:
        facts = {name: {"name": name, **entry.model_dump(), "origin": entry.origin} for name, entry in entries.items()}
        emit_json({kind: [{**each, **told.get(name, {})} for name, each in facts.items()]})
        return
    if told:
        columns = ("name", "version", "where, and found by", "what runs", "what does not")
        show_table(kind, columns, [(name, *_cells(each)) for name, each in told.items()])
        return
    rows = [
        (name, entry.summary, entry.budget if kind == "defenses" else "", entry.origin)
        for name, entry in entries.items()
    ]
    show_table(kind, ("name", "what it is", "sees", "from"), rows)


def _presence(entry: Entry) -> dict[str, Any]:
    """Where a toolbox is and what of it runs; if that cannot be told, why, since one toolbox must not end the list."""
    told: dict[str, Any] = {"version": "", "root": None, "found_by": "", "runs": [], "fails": {}, "problem": ""}
    if not entry.presence:
        return {**told, "found_by": f"part of {entry.origin}", "runs": [entry.summary]}
    try:
        found = cast("Callable[[], ToolboxPresence]", import_object(entry.presence))()
    except ClpError as error:
        return {**told, "problem": str(error)}
    except Exception as error:  # an extension may fail in any way
        return {**told, "problem": f"{entry.presence}: {type(error).__name__}: {error}"}
    return {**told, **asdict(found), "root": str(found.root)}


def _cells(told: Mapping[str, Any]) -> tuple[str, str, str, str]:
    place = f"{told['root']}, by {told['found_by']}" if told["root"] else told["found_by"]
    fails = "; ".join(f"{name}: {reason}" for name, reason in told["fails"].items())
    return told["version"], told["problem"] or place, "; ".join(told["runs"]), fails


def list_folder(root: Path, *, registry: Path | None, as_json: bool) -> None:
    """Records directly under a folder, incomplete ones included and marked."""
    from clp_plugin.records.opening import list_records
    from clp_plugin.store.layout import clear_dead_runs

    clear_dead(root, names=())
    found = list_records(root, load_catalogue(registry))
    for record in found:
        clear_dead_runs(record.path)
    if as_json:
        emit_json(
            {
                "records": [
                    {"path": str(r.path), "toolbox": r.toolbox, "summary": r.summary, "complete": r.complete}
                    for r in found
                ]
            }
        )
        return
    rows = [(str(r.path), r.toolbox, r.summary, "" if r.complete else "incomplete") for r in found]
    show_table(f"records in {root}", ("record", "toolbox", "what it is", "state"), rows)
