"""The page as one string: data, styles, scripts and the plotting library in a single HTML file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd

from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome

from ..board import board_notes, statements
from ..labels import method_labels, record_names
from ..ranking import REMOVED_ACC_DROP, REMOVED_ASR, has_backdoor, leaderboard, per_record
from ..tables import outcome_rows
from .studies import RecordStudy, study_json

_CELL = (
    "record", "attack", "dataset", "architecture", "method", "seed", "protocol", "budget", "before_acc", "before_asr",
    "base_rate", "after_acc", "after_asr", "after_ra", "der", "pruned", "seconds", "status", "error",
)  # fmt: skip
_REPORTED = ("reported_acc", "reported_asr", "reported_ra", "apart")


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
    names = record_names(frame["record"].fillna("").astype(str))
    columns = [*_CELL, *(_REPORTED if frame["apart"].notna().any() else ())]
    data = {
        "title": title,
        "notes": board_notes(frame),
        "removed": {"asr": REMOVED_ASR, "acc_drop": REMOVED_ACC_DROP},
        "methods": _records(leaderboard(frame)),
        "statements": statements(frame),
        "cells": [[row[key] for key in columns] for row in outcome_rows(frame)],
        "columns": columns,
        "points": _points(frame, names),
        "records": _studies(outcomes, studies, names),
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


def _points(frame: pd.DataFrame, names: Mapping[str, str]) -> list[list[object]]:
    """Label, record, accuracy lost and ASR left of each method on each record on which the attack took, means over seeds."""
    runs = per_record(frame)
    runs = runs[has_backdoor(runs)]
    lost = runs["before_acc"] - runs["after_acc"]
    folders = runs["record"].fillna("").astype(str).map(names)
    return [list(point) for point in zip(runs["label"], folders, lost, runs["after_asr"], strict=True)]


def _studies(
    outcomes: Sequence[Outcome], studies: Sequence[RecordStudy], names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    labels = method_labels(outcomes_frame(outcomes))
    masks: dict[str, list[tuple[str, Outcome]]] = {}
    for outcome, label in zip(outcomes, labels, strict=True):
        masks.setdefault(str(outcome.provenance.get("path")), []).append((label, outcome))
    told = (study for study in studies if study.channels is not None or study.sweep or study.images)
    return {names[study.record]: study_json(study, masks.get(study.record, [])) for study in told}


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
