"""Figures that compare methods on one or more records: plain values in, a matplotlib figure out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clp_plugin.errors import ConfigError
from clp_plugin.selection.outliers import z_scores

from ._style import BLUE, RED, SMALL, few_ticks, new_figure, plain_axes
from .labels import method_labels

_COLUMNS = 2  # panels side by side
_DRAWN = (("acc", "ACC", BLUE, "o"), ("asr", "ASR", RED, "s"))


def comparison_figure(frame: pd.DataFrame) -> Figure:
    """ACC and ASR after each method, a panel a record; dashed lines show the attacked model, DER and seconds stand right.

    Args:
        frame: Outcomes as :func:`clp_plugin.store.frame.outcomes_frame` returns them; failed ones are left out. Several
            of one method on one record are dots of their own, and the numbers at the right are their means.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    done = frame[frame["after_acc"].notna()] if len(frame) else frame
    if not len(done):
        raise ConfigError("a comparison needs at least one outcome with metrics, found none")
    done = done.assign(label=method_labels(done))
    panels = list(done.groupby(["record", "sha256"], sort=False, dropna=False))
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    tallest = max(group["label"].nunique() for _, group in panels)
    figure = new_figure(5.6 * columns, rows * (0.9 + 0.24 * tallest) + 0.4)
    for place, (_, group) in enumerate(panels, start=1):
        _panel(figure.add_subplot(rows, columns, place), group)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, group: pd.DataFrame) -> None:
    names = list(dict.fromkeys(group["label"]))
    for key, label, color, marker in _DRAWN:
        axes.axvline(
            100 * float(group[f"before_{key}"].astype(float).mean()),
            color=color, linestyle="--", linewidth=1, label=f"{label} attacked",
        )  # fmt: skip
        axes.scatter(
            100 * group[f"after_{key}"].astype(float), [names.index(name) for name in group["label"]],
            color=color, marker=marker, s=26, alpha=0.8, linewidths=0, zorder=3, label=f"{label} repaired",
        )  # fmt: skip
    for row, name in enumerate(names):
        own = group[group["label"] == name]
        said = f"DER {float(own['der'].astype(float).mean()):.2f}   {_seconds(float(own['seconds'].mean()))}"
        axes.text(1.02, row, said, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL)
    first = group.iloc[0]
    network = str(first["architecture"]).rpartition(":")[2]
    axes.set_title(f"{Path(str(first['record'])).name}: {first['attack']}, {network}", fontsize=8, loc="left")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlim=(-2, 102), ylim=(len(names) - 0.5, -0.5), xlabel="% of test images")
    plain_axes(axes)


def correlation_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """UCLC against TAC over all channels of each record, both standardized within their layers, pruned channels marked.

    Args:
        tables: Record name to a table with columns ``layer, sigma, tac, pruned``, as ``bench correlate`` writes.

    Raises:
        ConfigError: If there is no table.
    """
    if not tables:
        raise ConfigError("a UCLC-TAC figure needs at least one record on which `bench correlate` ran, found none")
    columns = min(len(tables), 4)
    rows = math.ceil(len(tables) / columns)
    figure = new_figure(max(2.6 * columns, 4.0), 2.5 * rows + 0.5)
    for place, (name, table) in enumerate(tables.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        sigma, tac, pruned = _standardized(table)
        axes.scatter(sigma[~pruned], tac[~pruned], s=6, color=BLUE, alpha=0.3, linewidths=0, rasterized=True)
        axes.scatter(sigma[pruned], tac[pruned], s=20, color=RED, marker="D", linewidths=0, zorder=3)
        axes.set_title(f"{name}\nr = {np.corrcoef(sigma, tac)[0, 1]:.2f}, {int(pruned.sum())} pruned", fontsize=8)
        few_ticks(axes)
        plain_axes(axes)
    figure.supxlabel("UCLC, standardized within its layer", fontsize=9)
    figure.supylabel("trigger-activated change, likewise", fontsize=9)
    return figure


def _standardized(table: pd.DataFrame) -> tuple[Any, Any, Any]:
    """Layers whose channels are all alike say nothing and are left out."""
    layers = [
        (
            z_scores(layer["sigma"].to_numpy(float)),
            z_scores(layer["tac"].to_numpy(float)),
            layer["pruned"].to_numpy(bool),
        )
        for _, layer in table.dropna(subset=["sigma", "tac"]).groupby("layer", sort=False)
    ]
    told = [layer for layer in layers if layer[0].any() and layer[1].any()]
    return tuple(np.concatenate(parts) for parts in zip(*told, strict=True)) if told else (np.zeros(0),) * 3  # type: ignore[return-value]


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 100 else f"{value / 60:.0f} min"
