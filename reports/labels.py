"""Names of methods and records that tell apart what stands side by side: whose code, which options, which folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

import pandas as pd

_SAME_METHOD = ["method", "implementation", "protocol"]


def method_label(method: str, implementation: str, protocol: str, changes: str = "") -> str:
    """``"anp, lr=0.1 (backdoorbench, oracle)"``: what tells runs apart, whose code ran unless it is ours, and ``oracle``
    if test data chose a parameter.
    """
    remarks = [] if implementation == "clp_plugin" else [implementation]
    if protocol == "oracle":
        remarks.append("oracle")
    name = f"{method}, {changes}" if changes else method
    return f"{name} ({', '.join(remarks)})" if remarks else name


def method_labels(frame: pd.DataFrame) -> list[str]:
    """Name the method of each outcome.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Returns:
        One :func:`method_label` a row. Options and budget are part of it where one method was run with several on one
        record; options that only follow from the data set are not.
    """
    changes = pd.Series("", index=frame.index)
    for _, runs in frame.groupby(_SAME_METHOD, sort=False, dropna=False):
        settings = runs["options"] + "\n" + runs["budget"]
        if settings.groupby([runs["sha256"], runs["record"]], dropna=False).nunique().max() > 1:
            changes[runs.index] = settings.map(_told_apart(list(dict.fromkeys(settings))))
    facts = zip(*(frame[column] for column in _SAME_METHOD), changes, strict=True)
    return [method_label(*fact) for fact in facts]


def record_names(folders: Iterable[str]) -> dict[str, str]:
    """The name of each record's folder, with a number where several have one name."""
    names: dict[str, str] = {}
    for folder in dict.fromkeys(folders):
        name = folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
        numbered = (f"{name}-{number}" for number in count(2))
        names[folder] = next(each for each in chain([name], numbered) if each not in names.values())
    return names


def attacked_names(frame: pd.DataFrame) -> list[str]:
    """Name of each row's record without ``-seedN``, so that the seeds of one attack have one name and ``badnets-all`` its own.

    Args:
        frame: A table with the columns ``record`` and ``sha256``; models of one name without seeds stay apart.
    """
    names = [Path(str(record)).name for record in frame["record"]]
    models = frame["sha256"].groupby(names).nunique()
    return [
        name.rpartition("-seed")[0] or (name if models[name] == 1 else str(record))
        for name, record in zip(names, frame["record"], strict=True)
    ]


def _told_apart(settings: Sequence[str]) -> dict[str, str]:
    """Each of some options and budgets to the few values that tell it from the others: ``"u=2, layers=fused"``."""
    held = [_values(each) for each in settings]
    chosen: list[str] = []
    distinct = 1
    for name in dict.fromkeys(name for values in held for name in values):
        split = len({tuple(values.get(each) for each in (*chosen, name)) for values in held})
        if split > distinct:
            chosen.append(name)
            distinct = split
    return {
        text: ", ".join(f"{name}={values[name]}" for name in chosen if name in values)
        for text, values in zip(settings, held, strict=True)
    }


def _values(settings: str) -> dict[str, str]:
    options, _, budget = settings.partition("\n")
    return {**{name: _shown(value) for name, value in json.loads(options).items()}, "budget": budget}


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value)
