"""The figures of a study of the surrogate, from its lines alone: PNG and PDF.

python benchmarks/surrogate/figures.py study.jsonl --out docs/figures [--networks NAME ...]
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lines import Row, architecture_of, measured, name_of, read_rows, works
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from clp_plugin.reports._style import BLUE, GREY, RED, SMALL, new_figure, plain_axes, save_figure

_COLUMNS = 4
_SHOWN = 8  # networks whose pictures are shown unless they are named


def tracking_figure(rows: Sequence[Row]) -> Figure:
    """The success that is left to the surrogate against the true ASR, a panel an attack: does it track the truth?

    A line a network along the candidates of u, and one along the rounds, whose triggers are sought anew.
    """
    attacks = {
        attack: [row for row in rows if row["attack"] == attack] for attack in sorted({r["attack"] for r in rows})
    }
    columns = min(len(attacks), _COLUMNS)
    height = -(-len(attacks) // columns)
    figure = new_figure(2.2 * columns + 0.4, 2.2 * height + 0.6)
    for place, (attack, own) in enumerate(attacks.items(), start=1):
        axes = figure.add_subplot(height, columns, place)
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=":")
        for row in own:
            _path(axes, [(one["success"], one["asr"]) for one in row["curve"]], BLUE, "o", "-")
            start = (row["rounds"][0]["before"], row["methods"]["before"]["asr"])
            _path(axes, [start, *((one["after"], one["asr"]) for one in row["rounds"])], RED, "s", "--")
        axes.set(xlim=(-4, 104), ylim=(-4, 104), xticks=[0, 50, 100], yticks=[0, 50, 100])
        axes.set_title(f"{attack}, {len(own)}", fontsize=8, loc="left")
        axes.tick_params(labelsize=SMALL)
        plain_axes(axes)
    figure.supxlabel("success left to the surrogate, % of held-out synthetic images", fontsize=9)
    figure.supylabel("true ASR, %", fontsize=9)
    handles = [
        Line2D([], [], color=BLUE, marker="o", markersize=4, linewidth=1, label="candidates of u"),
        Line2D([], [], color=RED, marker="s", markersize=4, linewidth=1, linestyle="--", label="rounds"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _path(axes: Axes, points: Sequence[tuple[float, float]], color: str, marker: str, line: str) -> None:
    x, y = 100 * np.array(points, dtype=float).T
    axes.plot(x, y, color=color, marker=marker, markersize=3, linewidth=0.8, linestyle=line, alpha=0.6)


def triggers_figure(rows: Sequence[Row]) -> Figure:
    """A column a network: a test image, the same with the attacker's trigger and what that changes, and with the surrogate."""
    labels = ("image", "true trigger", "its change, scaled", "surrogate")
    figure = new_figure(1.15 * len(rows) + 0.4, 5.0)
    panels = figure.subplots(len(labels), len(rows), squeeze=False)
    for line, label in zip(panels, labels, strict=True):
        line[0].set_ylabel(label, fontsize=8)
    for column, row in zip(panels.T, rows, strict=True):
        clean, triggered, surrogate = (_picture(row, key) for key in ("clean", "triggered", "surrogate"))
        change = np.abs(triggered.astype(int) - clean)
        shown = (clean, triggered, change * 255 // max(int(change.max()), 1), surrogate)
        for axes, image in zip(column, shown, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        truth = row["true_target"] if row["true_target"] is not None else "all"
        column[0].set_title(f"{architecture_of(row)}\n{row['attack']}", fontsize=SMALL)
        column[-1].set_xlabel(f"to {row['target']} (true: {truth})\ns = {row['patch']['success']:.0%}", fontsize=SMALL)
    return figure


def _picture(row: Row, key: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row["pictures"][key]))))


def gate_figure(rows: Sequence[Row]) -> Figure:
    """Side and success of every network's patch, with and without a working backdoor; the gate's corner is shaded."""
    sizes, gate = sorted({row["patch"]["size"] for row in rows}), rows[0]["gate"]
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    groups = (("no working backdoor", GREY, "o", -0.22, False), ("working backdoor", RED, "D", 0.22, True))
    for label, color, marker, shift, infected in groups:
        own = [row for row in rows if works(row) == infected]
        # Spread by a fixed sequence, not at random: the same lines give the same picture.
        spread = ((np.arange(len(own)) * 0.618034) % 1 - 0.5) * 0.3
        x = [sizes.index(row["patch"]["size"]) + shift for row in own] + spread
        y = [100 * row["patch"]["success"] for row in own]
        face = color if infected else "none"
        axes.scatter(
            x, y, s=22, marker=marker, edgecolors=color, facecolors=face, label=f"{label}, {len(own)}", zorder=3
        )
    passing = sum(size <= gate["size"] for size in sizes)
    axes.fill_between([-0.5, passing - 0.5], 100 * gate["success"], 102, color=BLUE, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(sizes)), [f"{size}x{size}" for size in sizes])
    axes.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(0, 102), xlabel="the patch that was found", ylabel="success s, %")
    plain_axes(axes, grid="y")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def one_an_attack(rows: Sequence[Row]) -> list[Row]:
    """The first network of each attack, up to eight."""
    return list({row["attack"]: row for row in reversed(rows)}.values())[::-1][:_SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path, help="the file that study.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the figures")
    parser.add_argument("--networks", nargs="+", help="records whose triggers are shown; by default one an attack")
    options = parser.parse_args()
    rows = measured(read_rows(options.lines))
    figures = {"gate": gate_figure(rows)}
    if infected := [row for row in rows if works(row)]:
        named = [row for row in infected if name_of(row) in (options.networks or ())]
        figures |= {
            "tracking": tracking_figure(infected),
            "triggers": triggers_figure(named or one_an_attack(infected)),
        }
    for name, figure in figures.items():
        for path in save_figure(figure, options.out / f"surrogate_{name}"):
            print(path)


if __name__ == "__main__":
    main()
