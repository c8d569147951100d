"""The page as one string: data, styles, scripts and the plotting library in a single HTML file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pandas as pd

from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome

from ..ranking import REMOVED, compare_methods, leaderboard
from ..tables import outcome_rows
from .studies import RecordStudy, study_json

_CELL = (
    "record", "attack", "dataset", "architecture", "method", "seed", "protocol", "budget", "before_acc", "before_asr",
    "base_rate", "after_acc", "after_asr", "after_ra", "der", "pruned", "seconds", "status", "error",
)  # fmt: skip


def page_html(outcomes: Sequence[Outcome], studies: Sequence[RecordStudy] = (), *, title: str = "Leaderboard") -> str:
    """Build a page that opens by double click, asks no server for anything, and holds all that it shows.

    Args:
        outcomes: The outcomes of all runs, failed ones included.
        studies: Further facts on some of the records.
        title: The page's heading.

    Returns:
        The HTML; its Content-Security-Policy forbids every request.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    frame = outcomes_frame(outcomes)
    data = {
        "title": title,
        "removed": REMOVED,
        "methods": _records(leaderboard(frame)),
        "statements": [comparison.statement("der") for comparison in compare_methods(frame)],
        "cells": [[row[key] for key in _CELL] for row in outcome_rows(frame)],
        "columns": list(_CELL),
        "records": _studies(outcomes, studies),
    }
    parts = {
        "title": _text(title),
        "style": _template("page.css"),
        "data": embedded_json(data),
        "plotly": _embedded_script(_vendored("plotly-basic.min.js")),
        "script": _embedded_script("".join(_template(name) for name in ("tables.js", "figures.js", "page.js"))),
    }
    # One pass: what is put in is never searched for places to fill.
    return re.sub(r"\{\{ (\w+) \}\}", lambda place: parts[place[1]], _template("page.html"))


def embedded_json(data: object) -> str:
    """JSON that no HTML parser can mistake for a tag, whatever text is in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _studies(outcomes: Sequence[Outcome], studies: Sequence[RecordStudy]) -> dict[str, Any]:
    found = {}
    for study in studies:
        own = [outcome for outcome in outcomes if str(outcome.provenance.get("path")) == study.record]
        found[study.record.replace("\\", "/").rstrip("/").rpartition("/")[2]] = study_json(study, own)
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _embedded_script(source: str) -> str:
    """A closing tag inside a string of the script would end it."""
    return source.replace("</script", "<\\/script")


def _text(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _template(name: str) -> str:
    return resources.files(__package__ or "").joinpath("templates", name).read_text(encoding="utf-8")


def _vendored(name: str) -> str:
    return resources.files(__package__ or "").joinpath("vendor", name).read_text(encoding="utf-8")
