"""Tables 1 to 4 and figures 3 to 5 of the CLP paper for anybody's own records, from stored outcomes and sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clp_plugin.errors import ConfigError
from clp_plugin.types import Mask, Scores

from ._style import BLUE, GREEN, RED, SMALL, new_figure, plain_axes
from .figures import uclc_tac_figure
from .labels import attacked_names
from .latex import latex_styled
from .ranking import per_record
from .tables import markdown_text

Row = Literal["attack", "record", "poison_rate", "architecture", "dataset"]
AVERAGE, DROP = "Average", "Drop"
_SHOWN = (("acc", "ACC", "max"), ("asr", "ASR", "min"))
_LINES = (("acc", "ACC", BLUE, "o", "-"), ("asr", "ASR", RED, "s", "--"), ("ra", "RA", GREEN, "^", ":"))
_COLUMNS = 3


def performance_table(frame: pd.DataFrame, *, by: Row = "attack") -> pd.DataFrame:
    """Lay out ACC and ASR of every method as tables 1 and 2 of the paper do, and as table 3 does with ``by="poison_rate"``.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.
        by: The column that makes the rows; rows of several records are means over them, each record once.

    Returns:
        Percent; rows in the order of appearance, then the average over the rows and how far it lies below that of the
        attacked models. Columns are pairs of a method's label (first ``"before"``) and ``"ACC"`` or ``"ASR"``; what was not
        run is not a number, and an average over rows with such a gap is not a number either.

    Raises:
        ConfigError: If no outcome has metrics.

    Source:
        CLP (ECCV 2022), tables 1 to 3. The paper's averages are printed; these are recomputed from the cells.
    """
    runs = _runs(frame, by)
    rows = list(dict.fromkeys(runs[by]))
    columns: dict[tuple[str, str], pd.Series[float]] = {}
    models = runs.drop_duplicates(["sha256", "record"])
    for key, name, _ in _SHOWN:
        columns["before", name] = models.groupby(by)[f"before_{key}"].mean()
    for label in dict.fromkeys(runs["label"]):
        own = runs[runs["label"] == label].groupby(by)
        for key, name, _ in _SHOWN:
            columns[str(label), name] = own[f"after_{key}"].mean()
    table = 100 * pd.DataFrame(columns).reindex(rows)
    average = table.mean(skipna=False)
    drop = pd.Series({pair: average["before", pair[1]] - average[pair] for pair in columns})
    return pd.concat([table, average.to_frame(AVERAGE).T, drop.to_frame(DROP).T])


def gaps(frame: pd.DataFrame, *, by: Row = "attack") -> list[str]:
    """Cells of :func:`performance_table` that are means over some of their row's records only, each in words."""
    runs = _runs(frame, by)
    of_all = runs.drop_duplicates(["sha256", "record"]).groupby(by).size()
    cells = runs.groupby([by, "label"], sort=False).size().reset_index(name="run").to_dict("records")
    return [
        f"{cell['label']}: {cell['run']} of {of_all[cell[by]]} records of {cell[by]}"
        for cell in cells
        if cell["run"] < of_all[cell[by]]
    ]


def rates_table(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Lay out ACC and ASR as table 3 of the paper does: a row a poisoning rate and method, two columns an attack.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Returns:
        Percent, the lowest rate first and of each the attacked models first; what was not run is not a number. Empty where
        no attack has two rates.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    runs = _runs(frame, "poison_rate").assign(attacked=lambda each: attacked_names(each))
    runs = runs[runs["poison_rate"] != "unknown"]
    if runs.groupby("attacked")["poison_rate"].nunique().max() < 2:
        return []
    rows = []
    for rate in sorted(set(runs["poison_rate"])):
        own = runs[runs["poison_rate"] == rate]
        for label in ("before", *dict.fromkeys(own["label"])):
            when = "before" if label == "before" else "after"
            chosen = own.drop_duplicates(["sha256", "record"]) if label == "before" else own[own["label"] == label]
            means = 100 * chosen.groupby("attacked")[[f"{when}_acc", f"{when}_asr"]].mean()
            cells = {
                f"{name} {metric.upper()}": float(means[f"{when}_{metric}"].get(name, math.nan))
                for name in dict.fromkeys(runs["attacked"])
                for metric in ("acc", "asr")
            }
            rows.append({"poison rate": rate, "method": label, **cells})
    return rows


def time_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Lay out the seconds of every method as table 4 of the paper does.

    Args:
        frame: The outcomes, as :func:`clp_plugin.store.frame.outcomes_frame` gives them.

    Returns:
        One row an architecture, one column a method: mean seconds of the method itself, without loading and evaluation.

    Raises:
        ConfigError: If no outcome has metrics.
    """
    runs = _runs(frame, "architecture")
    table = runs.pivot_table(index="architecture", columns="label", values="seconds", sort=False)
    return table.reindex(columns=list(dict.fromkeys(runs["label"])))


def table_latex(table: pd.DataFrame, caption: str) -> str:
    """Write a performance table for LaTeX with the package booktabs; the best ACC and ASR of each row are bold.

    Args:
        table: A table of :func:`performance_table`.
        caption: The caption, plain text.
    """
    style = table.style.format(precision=2, na_rep="--", escape="latex")
    compared = [label for label in dict.fromkeys(table.columns.get_level_values(0)) if label != "before"]
    rows = [row for row in table.index if row != DROP]
    for _, name, best in _SHOWN:
        cells = (rows, [(label, name) for label in compared])
        style = style.apply(_bold_best, axis=1, subset=cells, largest=best == "max")
    return latex_styled(style, caption)


def table_markdown(table: pd.DataFrame) -> str:
    """Write a performance table in Markdown, one cell ``ACC / ASR`` a method; the best ACC and ASR of a row are bold."""
    labels = list(dict.fromkeys(table.columns.get_level_values(0)))
    lines = [["", *(f"{label}, ACC / ASR %" for label in labels)], ["---", *["--:"] * len(labels)]]
    for row, values in table.iterrows():
        best = {name: _best(values, name, best == "max", row) for _, name, best in _SHOWN}
        lines.append([str(row), *(_pair(values[label], best, bold=label != "before") for label in labels)])
    return "".join(f"| {' | '.join(markdown_text(cell) for cell in line)} |\n" for line in lines)


def sweeps_figure(
    sweeps: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], *, default_u: float | None = None
) -> Figure:
    """Figures 4 and 5 of the paper: ACC, ASR and RA over u, one panel an attack or architecture, a band over its records.

    Args:
        sweeps: Panel title to sweeps, one for each record (such as the seeds of one attack), each a row
            ``{u, pruned, acc, asr, ra}`` a value of u, metrics in [0, 1] or None.
        default_u: The threshold to mark, or None.

    Raises:
        ConfigError: If there is no sweep.
    """
    if not sweeps:
        raise ConfigError("a figure of sweeps needs at least one record on which `bench sweep` ran, found none")
    columns = min(len(sweeps), _COLUMNS)
    rows = math.ceil(len(sweeps) / columns)
    figure = new_figure(max(2.7 * columns, 4.5), 2.2 * rows + 0.6)
    for place, (title, runs) in enumerate(sweeps.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for key, label, color, marker, line in _LINES:
            table = 100 * pd.DataFrame(
                [{float(row["u"]): _number(row[key]) for row in run} for run in runs]
            ).sort_index(axis=1)
            mean = table.mean()
            axes.plot(
                mean.index, mean, color=color, marker=marker, markersize=3, linewidth=1.2, linestyle=line, label=label
            )
            if len(runs) > 1:
                axes.fill_between(mean.index, table.min(), table.max(), color=color, alpha=0.15, linewidth=0)
        if default_u is not None:
            axes.axvline(default_u, color="black", linestyle="--", linewidth=0.8)
        axes.set_title(f"{title}, {len(runs)} records" if len(runs) > 1 else title, fontsize=8, loc="left")
        axes.set_ylim(-2, 102)
        axes.tick_params(labelsize=SMALL)
        plain_axes(axes)
    figure.supxlabel("threshold u", fontsize=9)
    figure.supylabel("% of test images", fontsize=9)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def channels_figure(table: pd.DataFrame) -> Figure:
    """Figure 3 of the paper from a stored table of channels: UCLC against TAC a layer, both correlations in its title.

    Args:
        table: One row a channel with the columns ``layer, channel, sigma, tac, pruned``, as ``bench correlate`` writes it.
    """
    layers = {str(name): layer.sort_values("channel") for name, layer in table.groupby("layer", sort=False)}
    ranked = {name: layer[["sigma", "tac"]].rank() for name, layer in layers.items()}
    return uclc_tac_figure(
        Scores({name: layer["sigma"].to_numpy(float) for name, layer in layers.items()}),
        {name: layer["tac"].to_numpy(float) for name, layer in layers.items()},
        Mask({name: layer["pruned"].to_numpy(bool) for name, layer in layers.items()}),
        {
            name: (layer["sigma"].corr(layer["tac"]), ranked[name]["sigma"].corr(ranked[name]["tac"]))
            for name, layer in layers.items()
        },
    )


def _runs(frame: pd.DataFrame, by: Row) -> pd.DataFrame:
    runs = per_record(frame)
    if not len(runs):
        raise ConfigError("a table needs at least one outcome with metrics, found none; run some methods first")
    if by == "record":
        return runs.assign(record=attacked_names(runs))
    return runs.assign(**{by: runs[by].astype(object).where(runs[by].notna(), "unknown")})


def _bold_best(values: pd.Series[float], *, largest: bool) -> list[str]:
    best = values.max() if largest else values.min()
    return ["textbf:--rwrap;" if value == best else "" for value in values]


def _best(values: pd.Series[float], name: str, largest: bool, row: object) -> float:
    own = [values[label, name] for label, each in values.index if each == name and label != "before"]
    told = [float(value) for value in own if not math.isnan(value)]
    if row == DROP or not told:
        return math.nan
    return max(told) if largest else min(told)


def _pair(values: pd.Series[float], best: Mapping[str, float], *, bold: bool) -> str:
    cells = []
    for _, name, _ in _SHOWN:
        text = "–" if math.isnan(values[name]) else f"{values[name]:.1f}"
        cells.append(f"**{text}**" if bold and values[name] == best[name] else text)
    return " / ".join(cells)


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
