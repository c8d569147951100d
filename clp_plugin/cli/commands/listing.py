"""``bench list``."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from clp_plugin.cli.console import emit_json, show_table
from clp_plugin.files.locks import clear_dead
from clp_plugin.registry import Kind, load_catalogue


def list_catalogue(kind: str, *, registry: Path | None, as_json: bool) -> None:
    """Entries of one section, with who offers them."""
    section = cast(Kind, kind)
    catalogue = load_catalogue(registry)
    entries = {name: catalogue.entry(section, name) for name in catalogue.names(section)}
    if as_json:
        emit_json(
            {kind: [{"name": name, **entry.model_dump(), "origin": entry.origin} for name, entry in entries.items()]}
        )
        return
    rows = [
        (name, entry.summary, entry.budget if kind == "defenses" else "", entry.origin)
        for name, entry in entries.items()
    ]
    show_table(kind, ("name", "what it is", "sees", "from"), rows)


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
