"""Methods against each other over many records: what they remove, what it costs in accuracy, and what in time."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from clp_plugin.errors import ConfigError

from ._style import GREY, SMALL, look, new_figure, plain_axes
from .ranking import REMOVED_ACC_DROP, REMOVED_ASR, has_backdoor, leaderboard, per_record


def tradeoff_figure(frame: pd.DataFrame) -> Figure:
    """Accuracy lost against ASR that is left: one point a record, a look a method; what counts as removed is shaded.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Raises:
        ConfigError: If no attack took on any record.
    """
    board, runs = _ranked(frame)
    figure = new_figure(5.6, 3.6)
    axes = figure.add_subplot()
    lost = 100 * (runs["before_acc"] - runs["after_acc"])
    for position, label in enumerate(board["label"]):
        own = runs["label"] == label
        color, marker = look(position)
        axes.scatter(
            lost[own], 100 * runs.loc[own, "after_asr"],
            s=38, color=color, marker=marker, alpha=0.8, edgecolors="white", linewidths=0.5, label=label, zorder=3,
            clip_on=False,
        )  # fmt: skip
    left = min(float(lost.min()), 0.0) - 1
    corner = Rectangle(
        (left, 0), 100 * REMOVED_ACC_DROP - left, 100 * REMOVED_ASR, color=GREY, alpha=0.2, linewidth=0, label="removed"
    )
    axes.add_patch(corner)
    axes.set(xlim=(left, max(float(lost.max()), 10.0) + 1), ylim=(0, 100))
    axes.set(xlabel="accuracy lost, percentage points", ylabel="ASR after repair, %")
    plain_axes(axes)
    _legend_beside(figure, axes)
    return figure


def effectiveness_figure(frame: pd.DataFrame) -> Figure:
    """DER of each method: the mean over records with its 95 % bootstrap interval, and a thin mark for each record.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Raises:
        ConfigError: If no attack took on any record.
    """
    board, runs = _ranked(frame)
    figure = new_figure(5.6, 0.9 + 0.3 * len(board))
    axes = figure.add_subplot()
    for position, row in enumerate(board.to_dict("records")):
        color, marker = look(position)
        own = runs.loc[runs["label"] == row["label"], "der"]
        axes.scatter(own, [position] * len(own), s=60, marker="|", color=GREY, alpha=0.6, linewidths=0.8)
        axes.errorbar(
            row["der"], position, xerr=[[row["der"] - row["der_low"]], [row["der_high"] - row["der"]]],
            color=color, marker=marker, markersize=6, capsize=3, linewidth=1.5, clip_on=False,
        )  # fmt: skip
    axes.set_yticks(
        range(len(board)), [f"{row['label']} ({row['records']})" for row in board.to_dict("records")], fontsize=8
    )
    axes.set(xlim=(0, 1), ylim=(len(board) - 0.5, -0.5))
    figure.supxlabel("DER: mean over records (their number) with 95 % interval; thin marks: records", fontsize=9)
    plain_axes(axes, grid="x")
    return figure


def cost_figure(frame: pd.DataFrame) -> Figure:
    """Seconds of each method, logarithmic, against its mean DER with 95 % interval.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Raises:
        ConfigError: If no attack took on any record.
    """
    board, _ = _ranked(frame)
    figure = new_figure(5.6, 3.4)
    axes = figure.add_subplot()
    for position, row in enumerate(board.to_dict("records")):
        color, marker = look(position)
        axes.errorbar(
            max(row["seconds"], 1e-3), row["der"], yerr=[[row["der"] - row["der_low"]], [row["der_high"] - row["der"]]],
            color=color, marker=marker, markersize=6, capsize=2, linewidth=1.2, linestyle="", label=row["label"], clip_on=False,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=SMALL + 1)
    axes.set(ylim=(0, 1), xlabel="seconds of the method itself", ylabel="DER, mean with 95 % interval")
    plain_axes(axes)
    _legend_beside(figure, axes)
    return figure


def _ranked(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The methods that were run on a record on which the attack took, the best first, and what each did to each such record."""
    board, runs = leaderboard(frame), per_record(frame)
    board = board[board["records"] > 0]
    if not len(board):
        raise ConfigError("a comparison of methods needs a record on which an attack took, with outcomes; found none")
    return board, runs[has_backdoor(runs)]


def _legend_beside(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=SMALL + 1)
