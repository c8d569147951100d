"""``bench leaderboard page``: all that was run, and what is known of the records, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clp_plugin.cli.commands.chosen import choose, plain_rows
from clp_plugin.cli.console import emit_json, say
from clp_plugin.files.atomic import write_text_atomically
from clp_plugin.store.analyses import channel_table, sweep_table

if TYPE_CHECKING:
    from clp_plugin.reports.page.studies import RecordStudy


def write_page(folders: Sequence[Path], out: Path, *, title: str, where: Sequence[str], as_json: bool) -> None:
    """Write the page; what ``bench correlate`` and ``bench sweep`` stored with a record is on it."""
    from clp_plugin.reports.page.build import page_html

    chosen = choose(folders, where)
    studies = [_study(Path(record)) for record in chosen.records]
    html = page_html(chosen.outcomes, studies, title=title)
    write_text_atomically(out, html)
    if as_json:
        size = len(html.encode("utf-8"))
        emit_json({"page": str(out), "runs": len(chosen.outcomes), "records": len(studies), "bytes": size})
    else:
        say(f"wrote {len(chosen.outcomes)} runs on {len(studies)} records to {out}")


def _study(record: Path) -> RecordStudy:
    from clp_plugin.reports.page.studies import RecordStudy

    sweep = sweep_table(record)
    return RecordStudy(str(record), channel_table(record), [] if sweep is None else plain_rows(sweep))
