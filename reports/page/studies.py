"""A page's facts on one attacked model beyond its outcomes: its channels, its sweep over u and a few images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clp_plugin.selection.outliers import z_scores
from clp_plugin.store.outcomes import Outcome

_DIGITS = 5  # significant digits of what is only drawn
_LARGEST_SIDE = 96  # pixels; a page shows them no larger


@dataclass(frozen=True)
class RecordStudy:
    """The evidence on one attacked model, as ``bench correlate`` and ``bench sweep`` stored it.

    Attributes:
        record: The record's folder, as its outcomes name it.
        channels: A table with the columns ``layer, channel, sigma, tac``, one row a channel, or None.
        sweep: One row a value of ``u``, each with ``u, pruned, acc, asr, ra``; empty if there was no sweep.
        images: Pairs of a clean image and its triggered twin, each ``(C, H, W)`` uint8 with C 1 or 3.
    """

    record: str
    channels: pd.DataFrame | None = None
    sweep: Sequence[Mapping[str, Any]] = ()
    images: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = ()


def study_json(study: RecordStudy, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, Any]:
    """Turn a study into plain data for the page.

    Args:
        study: The record's channels, sweep and images.
        outcomes: All outcomes on the same record with their methods' labels; the masks say who pruned a channel.

    Returns:
        ``layers`` (``name, sigma, z, tac`` each, lists over channels), ``pruned`` (layer to channel to method labels),
        ``sweep`` and ``images`` (pairs of ``data:`` addresses).
    """
    return {
        "layers": [] if study.channels is None else _layers(study.channels),
        "pruned": {} if study.channels is None else _pruned_by(outcomes),
        "sweep": [{key: _plain(row.get(key)) for key in ("u", "pruned", "acc", "asr", "ra")} for row in study.sweep],
        "images": [[image_address(clean), image_address(triggered)] for clean, triggered in study.images],
    }


def image_address(pixels: NDArray[np.uint8]) -> str:
    """The ``data:`` address of an image ``(C, H, W)`` uint8 as a PNG of at most 96 pixels a side."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze())
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _layers(channels: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "name": str(name),
            "sigma": _rounded(layer["sigma"]),
            "z": _rounded(z_scores(layer["sigma"].to_numpy(float))),
            "tac": _rounded(layer["tac"]),
        }
        for name, layer in channels.sort_values("channel", kind="stable").groupby("layer", sort=False)
    ]


def _pruned_by(outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for label, outcome in outcomes:
        for layer, facts in (outcome.mask or {}).items():
            for channel in facts["pruned"]:
                labels = found.setdefault(layer, {}).setdefault(str(channel), [])
                if label not in labels:
                    labels.append(label)
    return found


def _rounded(values: Any) -> list[float | None]:
    return [_plain(float(f"{value:.{_DIGITS}g}")) for value in np.asarray(values, dtype=float)]


def _plain(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
