"""Attacks, or records, against defenses: one table and one figure for all that was run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clp_plugin.errors import ConfigError

from ._style import SMALL, new_figure
from .labels import attacked_names, method_labels
from .ranking import BACKDOOR_MARGIN, REMOVED_ACC_DROP, REMOVED_ASR, has_backdoor
from .tables import markdown_text

_REMOVED_TITLE = (
    f"Of the records on which the attack took (ASR at least {100 * BACKDOOR_MARGIN:g} points above base), those on which "
    f"ASR falls to {100 * REMOVED_ASR:g} % or less for at most {100 * REMOVED_ACC_DROP:g} points of accuracy; and "
    "means over those on which it took"
)
_NUMBERS = ("before_acc", "before_asr", "before_base_rate", "after_acc", "after_asr", "after_ra", "der", "seconds")
_SHOWN = (("after_acc", "ACC after repair, %"), ("after_asr", "ASR after repair, %"), ("der", "DER, %"))


def matrix_markdown(frame: pd.DataFrame) -> str:
    """Attacks down, defenses across: ACC / ASR in percent, mean over seeds; then, in tables of their own, a summary of
    each method, DER, RA and seconds, and where there are several seeds the range of ASR over them.

    Records ``NAME-seedN`` are one row, the attack ``NAME``; any other record is a row of its own.

    Args:
        frame: Outcomes as :func:`clp_plugin.store.frame.outcomes_frame` returns them; a cell without a result is a
            dash.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    done = _with_metrics(frame)
    seeds = sorted(done["seed"].dropna().unique().tolist())
    over = ", ".join(str(seed) for seed in seeds)
    head = (
        f"ACC / ASR in percent, mean over seeds {over}. `before` is the attacked model; `base` is how many clean twins of the "
        "triggered images it already classifies as the attacker wants: an ASR near it is not the trigger's doing."
    )
    parts = [f"{head}\n\n{_table(_pairs(done))}"]
    backdoored = done[has_backdoor(done)]
    if len(backdoored):
        parts.append(f"\n{_REMOVED_TITLE}:\n\n{_table(_summary(backdoored), first='method')}")
    spread = _grid(done, "after_asr", "max") - _grid(done, "after_asr", "min")
    ranges = [("Range of ASR over seeds, percentage points", 100 * spread, 0)] if len(seeds) > 1 else []
    for title, grid, digits in (
        *ranges,
        ("DER", _grid(done, "der"), 2),
        ("RA in percent", 100 * _grid(done, "after_ra"), 1),
        ("Seconds of the method itself", _grid(done, "seconds"), 1),
    ):
        parts.append(f"\n{title}:\n\n{_table(_numbers(grid, digits))}")
    told = done["apart"].dropna()
    if len(told):
        parts.append(
            f"\nOf {len(told)} runs a toolbox's script told ACC, ASR or RA of its own: "
            f"at most {told.max()} test images apart from what is shown here.\n"
        )
    failed = frame[frame["status"] == "failed"]
    failed = failed.assign(label=method_labels(failed))
    told_by_failures = (f"{row.label} on {Path(str(row.record)).name}: {row.error}" for row in failed.itertuples())
    parts += [f"\nFailed: {markdown_text(line)}\n" for line in told_by_failures]
    return "".join(parts)


def _summary(backdoored: pd.DataFrame) -> pd.DataFrame:
    """A row a method: on how many records it removed the backdoor at little cost, and its means over all of them."""
    cheap = backdoored["before_acc"] - backdoored["after_acc"] <= REMOVED_ACC_DROP
    marked = backdoored.assign(removed=cheap & (backdoored["after_asr"] <= REMOVED_ASR))
    by_method = marked.groupby("label", sort=False)
    return pd.DataFrame(
        {
            "removed": [f"{int(group['removed'].sum())} of {len(group)}" for _, group in by_method],
            "mean ACC %": [f"{100 * group['after_acc'].mean():.1f}" for _, group in by_method],
            "mean ASR %": [f"{100 * group['after_asr'].mean():.1f}" for _, group in by_method],
            "mean DER": [f"{group['der'].mean():.2f}" for _, group in by_method],
        },
        index=list(by_method.groups),
    )


def matrix_figure(frame: pd.DataFrame) -> Figure:
    """Three heat maps, attacks down and defenses across: ACC, ASR and DER, mean over seeds, with their numbers.

    Args:
        frame: Outcomes as :func:`clp_plugin.store.frame.outcomes_frame` returns them.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    done = _with_metrics(frame)
    rows, columns = done["attacked"].nunique(), done["label"].nunique()
    figure = new_figure(max(3 * (0.55 * columns + 1.2), 9), 0.34 * rows + 1.4)
    for place, (key, title) in enumerate(_SHOWN, start=1):
        grid = _grid(done, key)
        if key != "der":
            grid.insert(0, "before", _before(done, key.removeprefix("after_")))
        _heatmap(figure.add_subplot(1, len(_SHOWN), place), 100 * grid, title, bad_is_high=key == "after_asr")
    return figure


def _heatmap(axes: Axes, grid: pd.DataFrame, title: str, *, bad_is_high: bool) -> None:
    values = grid.to_numpy(float)
    axes.imshow(values, cmap="RdYlBu_r" if bad_is_high else "RdYlBu", vmin=0, vmax=100, aspect="auto", alpha=0.75)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, "-" if np.isnan(value) else f"{value:.0f}", ha="center", va="center", fontsize=SMALL)
    axes.set_xticks(range(len(grid.columns)), list(grid.columns), rotation=60, ha="right", fontsize=SMALL)
    axes.set_yticks(range(len(grid.index)), list(grid.index), fontsize=SMALL)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=8, loc="left")


def _with_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    done = frame[frame["after_acc"].notna()] if len(frame) else frame
    if not len(done):
        raise ConfigError("a matrix needs at least one outcome with metrics, found none")
    done = done.assign(label=method_labels(done), attacked=attacked_names(done))
    return done.astype(dict.fromkeys(_NUMBERS, float))


def _grid(done: pd.DataFrame, key: str, how: Literal["mean", "max", "min"] = "mean") -> pd.DataFrame:
    grid = done.pivot_table(index="attacked", columns="label", values=key, aggfunc=how, sort=False)
    return grid.reindex(index=done["attacked"].unique(), columns=done["label"].unique())


def _pairs(done: pd.DataFrame) -> pd.DataFrame:
    acc, asr = 100 * _grid(done, "after_acc"), 100 * _grid(done, "after_asr")
    cells = pd.DataFrame(
        {
            name: ["-" if pd.isna(a) else f"{a:.1f} / {b:.1f}" for a, b in zip(acc[name], asr[name], strict=True)]
            for name in acc
        },
        index=acc.index,
    )
    before = zip(100 * _before(done, "acc"), 100 * _before(done, "asr"), strict=True)
    cells.insert(0, "before", [f"{a:.1f} / {b:.1f}" for a, b in before])
    cells.insert(1, "base", [f"{value:.1f}" for value in 100 * _before(done, "base_rate")])
    return cells


def _before(done: pd.DataFrame, key: str) -> pd.Series[float]:
    """Mean over the attacked models, each counted once whatever was run on it."""
    return done.drop_duplicates("sha256").groupby("attacked", sort=False)[f"before_{key}"].mean()


def _numbers(grid: pd.DataFrame, digits: int) -> pd.DataFrame:
    return grid.map(lambda value: "-" if pd.isna(value) else f"{value:.{digits}f}")


def _table(cells: pd.DataFrame, first: str = "attack") -> str:
    heads = [first, *map(str, cells.columns)]
    lines = [heads, ["---", *["--:"] * len(cells.columns)]]
    lines += [[str(name), *map(str, row)] for name, row in zip(cells.index, cells.to_numpy().tolist(), strict=True)]
    return "".join(f"| {' | '.join(map(markdown_text, line))} |\n" for line in lines)
