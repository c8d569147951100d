"""The look of every figure, and how it reaches the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clp_plugin.files.atomic import write_atomically

# Okabe and Ito's colours, told apart with any colour vision; markers differ too, for prints in grey.
BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#D55E00", "#7F7F7F"
_COLORS = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "d", "h")
SMALL = 7
DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; laid out so that labels do not overlap. No pyplot state."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)


def plain_axes(axes: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """A light grid and no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color="#E5E5E5", linewidth=0.6)


def look(position: int) -> tuple[str, str]:
    """Colour and marker of the so-manieth of some things; the first 88 differ, the first eleven in grey too."""
    return _COLORS[position % len(_COLORS)], _MARKERS[position % len(_MARKERS)]


def few_ticks(axes: Axes, count: int = 4) -> None:
    """Set at most ``count`` + 1 ticks a side, three digits each, for panels as small as a stamp."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(count))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.tick_params(labelsize=SMALL)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem`` + ``.png`` and ``stem`` + ``.pdf``, each in one step; equal figures give equal files.

    Args:
        figure: A figure that one of the figure functions returned.
        stem: Path without suffix; dots in its name stay.

    Returns:
        The two paths.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    undated: dict[str, dict[str, Any]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar sign in a record's name is no formula
    written = []
    for kind, metadata in undated.items():
        path = stem.with_name(f"{stem.name}.{kind}")

        def draw(file: BinaryIO, kind: str = kind, metadata: dict[str, Any] = metadata) -> None:
            # Ticks make their texts while they are drawn; of fonts of type 3 many publishers want none.
            with rc_context({"text.parse_math": False, "pdf.fonttype": 42}):
                figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)

        write_atomically(path, draw)
        written.append(path)
    return written
