"""One function a figure: plain values in, a matplotlib figure out. Nothing is written and no state is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError
from clp_plugin.selection.outliers import z_scores
from clp_plugin.types import Bools, Floats, Mask, Scores

from ._style import BLUE, GREEN, GREY, RED, SMALL, few_ticks, new_figure, plain_axes
from ._style import save_figure as save_figure

_LISTED = 6  # pruned channels written out beside a layer
_METRICS = (("acc", "ACC", BLUE, "o"), ("asr", "ASR", RED, "s"), ("ra", "RA", GREEN, "^"))

_LegendEntry = tuple[str, str, str, Literal["", "-", "--"]]  # label, colour, marker, line style


def channel_scores_figure(scores: Scores, mask: Mask, u: float | None) -> Figure:
    """One strip of dots a layer: how many standard deviations each channel's score is above its layer's mean.

    Args:
        scores: One score per channel of each layer.
        mask: The channels to mark; their indices are written at the right.
        u: The threshold to draw; None where there is none.
    """
    names = list(scores.sigma)
    figure = new_figure(8.5, 1.6 + 0.2 * max(len(names), 3))
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        z, marked = (
            z_scores(scores.sigma[name], unbiased=scores.pairing == "registration"),
            _marked(mask, name, len(scores.sigma[name])),
        )
        # Spread by a fixed sequence, not at random: the same scores give the same picture.
        offset = ((np.arange(len(z)) * 0.618034) % 1 - 0.5) * 0.6
        axes.scatter(
            z[~marked],
            (row + offset)[~marked],
            s=10 if len(z) <= 64 else 5,
            color=BLUE,
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        axes.scatter(z[marked], np.full(int(marked.sum()), row), s=26, color=RED, marker="D", linewidths=0, zorder=3)
        axes.text(
            1.01, row, _listed(marked), transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, color=RED
        )
    legend: list[_LegendEntry] = [("channel", BLUE, "o", ""), (f"{len(mask)} pruned, index at the right", RED, "D", "")]
    if u is not None:
        axes.axvline(u, color="black", linestyle="--", linewidth=1)
        legend.append((f"threshold u = {u:g}", "black", "", "--"))
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.set_xlabel("standard deviations above the layer's mean score")
    axes.tick_params(axis="x", labelsize=8, top=len(names) > 30, labeltop=len(names) > 30)
    plain_axes(axes)
    _legend(figure, legend)
    return figure


def uclc_tac_figure(
    scores: Scores, tac: Mapping[str, Floats], mask: Mask, correlations: Mapping[str, tuple[float, float]]
) -> Figure:
    """Figure 3 of the CLP paper: score against trigger-activated change, a panel a layer, pruned channels marked.

    Args:
        scores: One score per channel; within a layer UCLC is this up to a constant factor.
        tac: Layer name to ``(channels,)``; layers without an entry are left out.
        mask: The pruned channels.
        correlations: Layer name to (Pearson, Spearman), each in [-1, 1] or NaN.

    Raises:
        ConfigError: If a layer's TAC has another number of channels than its scores.
    """
    names = [name for name in scores.sigma if name in tac]
    columns = min(max(math.ceil(math.sqrt(len(names))), 1), 8)
    rows = max(math.ceil(len(names) / columns), 1)
    figure = new_figure(max(2.0 * columns, 4.5), 1.75 * rows + 0.7)
    for place, name in enumerate(names, start=1):
        sigma, change = scores.sigma[name], np.asarray(tac[name])
        if sigma.shape != change.shape:
            raise ConfigError(f"layer {name!r}: {sigma.size} scores but {change.size} values of TAC")
        marked = _marked(mask, name, sigma.size)
        axes = figure.add_subplot(rows, columns, place)
        axes.scatter(sigma[~marked], change[~marked], s=9, color=BLUE, alpha=0.5, linewidths=0, rasterized=True)
        axes.scatter(sigma[marked], change[marked], s=26, color=RED, marker="D", linewidths=0, zorder=3)
        pearson, spearman = correlations.get(name, (math.nan, math.nan))
        axes.set_title(f"{_shortened(name, 26)}\nr = {_number(pearson)}, ρ = {_number(spearman)}", fontsize=SMALL)
        few_ticks(axes)
        plain_axes(axes)
    figure.supxlabel("σ: UCLC within the layer, up to the layer's constant factor", fontsize=9)
    figure.supylabel("trigger-activated change", fontsize=9)
    _legend(figure, [("channel", BLUE, "o", ""), (f"pruned ({len(mask)})", RED, "D", "")])
    return figure


def sweep_figure(
    rows: Sequence[Mapping[str, Any]],
    *,
    default_u: float | None = None,
    chosen_u: float | None = None,
    title: str = "",
) -> Figure:
    """Figure 4 of the CLP paper: accuracy and attack success over the threshold; below, how many channels go.

    Args:
        rows: ``{u, pruned, acc, asr, ra}`` each, metrics in [0, 1] or None.
        default_u: The default threshold to mark, or None.
        chosen_u: The threshold to mark that was chosen without data, or None.
        title: Above the figure.

    Raises:
        ConfigError: If there are no rows.
    """
    if not rows:
        raise ConfigError("a sweep figure needs at least one row {u, pruned, acc, asr, ra}, found none")
    ordered = sorted(rows, key=lambda row: float(row["u"]))
    u = [float(row["u"]) for row in ordered]
    figure = new_figure(6.4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for key, label, color, marker in _METRICS:
        values = [math.nan if row.get(key) is None else 100 * float(row[key]) for row in ordered]
        if not all(map(math.isnan, values)):
            upper.plot(u, values, color=color, marker=marker, markersize=4, linewidth=1.5, label=label, clip_on=False)
    lower.step(u, [int(row["pruned"]) for row in ordered], where="mid", color="black", linewidth=1.2)
    lower.fill_between(u, [int(row["pruned"]) for row in ordered], step="mid", color=GREY, alpha=0.3, linewidth=0)
    for value, whose, style in ((default_u, "default", "--"), (chosen_u, "chosen", ":")):
        if value is not None:
            lower.axvline(value, color="black", linestyle=style, linewidth=1)
            upper.axvline(value, color="black", linestyle=style, linewidth=1, label=f"{whose} u = {value:g}")
    for axes in (upper, lower):
        plain_axes(axes)
    upper.set(ylim=(0, 100), ylabel="% of test images", title=title)
    lower.set(ylim=(0, None), ylabel="pruned", xlabel="threshold u (standard deviations above a layer's mean)")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


def example_images_figure(
    clean: NDArray[np.uint8], triggered: NDArray[np.uint8], *, captions: Sequence[str] = ()
) -> Figure:
    """Clean images, the same with the trigger, and what changed, scaled to the full range so that it can be seen.

    Args:
        clean: ``(N, C, H, W)`` uint8, C 1 or 3.
        triggered: The same images with the trigger.
        captions: Up to N lines, above the columns.

    Raises:
        ConfigError: If the two do not have one shape, or there are none.
    """
    if clean.shape != triggered.shape or clean.ndim != 4 or not len(clean):
        raise ConfigError(f"expected two equal shapes (N, C, H, W), found {clean.shape} and {triggered.shape}")
    change = np.abs(triggered.astype(np.int16) - clean.astype(np.int16))
    largest = max(int(change.max()), 1)
    shown = [
        ("clean", clean),
        ("with trigger", triggered),
        (f"change × {255 / largest:.2g}", (change * 255 // largest).astype(np.uint8)),
    ]
    figure = new_figure(1.1 * len(clean) + 0.5, 3.7)
    panels = figure.subplots(len(shown), len(clean), squeeze=False)
    for line, (label, images) in zip(panels, shown, strict=True):
        line[0].set_ylabel(label, fontsize=8)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, caption in zip(panels[0], captions, strict=False):
        axes.set_title(caption, fontsize=8)
    return figure


def _marked(mask: Mask, name: str, channels: int) -> Bools:
    vector = mask.pruned.get(name)
    if vector is None:
        return np.zeros(channels, dtype=bool)
    if vector.size != channels:
        raise ConfigError(f"layer {name!r}: {channels} scores but a mask of {vector.size} channels")
    return vector


def _listed(marked: Bools) -> str:
    indices = [str(index) for index in np.flatnonzero(marked)]
    rest = f" +{len(indices) - _LISTED}" if len(indices) > _LISTED else ""
    return ", ".join(indices[:_LISTED]) + rest


def _legend(figure: Figure, items: Sequence[_LegendEntry]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=marker, linestyle=line, markersize=5, label=label)
        for label, color, marker, line in items
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else "…" + name[-(length - 1) :]


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"
