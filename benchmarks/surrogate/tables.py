"""The tables of a study of the surrogate, from its lines alone, in Markdown.

python benchmarks/surrogate/tables.py study.jsonl [--gate 4 0.8 | --ratio 0.2]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from gate_tables import gate_by_architecture, gate_by_threshold
from gates import behind, ratio_of_losses, success_at
from layout import table
from lines import GATED, HALVES, METHODS, Row, architecture_of, as_used, measured, name_of, one_target, read_rows, works
from scipy.stats import spearmanr

from clp_plugin.reports.ranking import REMOVED_ASR, interval_of_mean

GROUPED = tuple(name for name in METHODS if not name.startswith("u=3,"))


def tables(rows: Sequence[Row]) -> str:
    """The tables of each half, the gate across both, and what failed."""
    done = measured(rows)
    parts = []
    for half in HALVES:
        if own := [row for row in done if row["half"] == half]:
            parts += [f"### {half.capitalize()}: {len(own)} networks", *half_tables(own)]
    parts += (
        ["### The gate's threshold, chosen on some networks and used on others", gate_by_threshold(done)]
        if done
        else []
    )
    parts += [f"failed: {row['record']}: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join(parts)


def half_tables(rows: Sequence[Row]) -> list[str]:
    """What the methods do to infected networks, what they cost the others, the gate, groups and single networks."""
    infected, idle = [row for row in rows if works(row)], [row for row in rows if not works(row)]
    parts = []
    if infected:
        parts += [f"**{len(infected)} networks with a working backdoor**, means in percent", methods_table(infected)]
        parts += ["DER (ACC / ASR / RA in percent), means of groups", groups_table(infected)]
    if passed := [row for row in infected if row["accepted"]]:
        parts += [f"**{len(passed)} of them passed the gate**, means in percent", methods_table(passed)]
        parts += ["What each method costs these", costs_table(passed)]
    if idle:
        parts += [f"**{len(idle)} networks without one**: what each method costs them", costs_table(idle)]
    parts += ["**The class named and the gate**, with 95 % intervals of the rates", gate_by_architecture(rows)]
    if infected:
        parts += [tracking_line(infected)]
        parts += ["ACC / ASR / RA in percent, with a working backdoor", networks_table(infected)]
    if idle:
        parts += ["ACC / ASR / RA in percent, without one", networks_table(idle)]
    return parts


def methods_table(rows: Sequence[Row]) -> str:
    """Means of each method; the gated ones as they are used, and past the gate."""
    cells = []
    for name, pairs in _uses(rows).items():
        used = [one for _, one in pairs]
        rates = [_percent(_mean(used, key)) for key in ("acc", "asr", "ra")]
        points = np.array([100 * (one["der"] - row["methods"]["best u (oracle)"]["der"]) for row, one in pairs])
        interval = "({:+.1f} to {:+.1f})".format(*interval_of_mean(points))
        ders = [
            f"{_mean(used, 'der'):.3f}",
            f"{points.mean():+.1f} {interval}",
            f"{min(one['der'] for one in used):.3f}",
        ]
        seconds = [one["seconds"] for one in used if one["seconds"] is not None]
        removed = str(sum(one["asr"] <= REMOVED_ASR for one in used))
        cells.append([name, str(len(used)), *rates, *ders, removed, f"{np.mean(seconds):.1f}" if seconds else "–"])
    heads = [
        "method",
        "networks",
        "ACC",
        "ASR",
        "RA",
        "DER",
        "points from best u",
        "lowest DER",
        "ASR ≤ 10 %",
        "seconds",
    ]
    return table(heads, cells)


def groups_table(rows: Sequence[Row]) -> str:
    """Means of all networks, by target, data set, architecture and attack."""
    groupings: list[Callable[[Row], str]] = [
        lambda row: "all",
        lambda row: "one target" if one_target(row) else "all-to-all",
        lambda row: f"data: {row['dataset']}",
        lambda row: f"network: {architecture_of(row)}",
        lambda row: f"attack: {row['attack']}" + ("" if one_target(row) else ", all-to-all"),
    ]
    cells = []
    for group_of in groupings:
        groups = sorted({group_of(row) for row in rows})
        for group in groups if len(groups) > 1 or groups == ["all"] else ():
            own = [row for row in rows if group_of(row) == group]
            cells.append(
                [group, str(len(own)), *(_group_cell([as_used(row, name) for row in own]) for name in GROUPED)]
            )
    return table(["", "networks", *GROUPED], cells)


def _uses(rows: Sequence[Row]) -> dict[str, list[tuple[Row, Row]]]:
    """Each method, the gated ones also past the gate, with the networks that it was run on, one at least, and what it does."""
    found = {name: [(row, as_used(row, name)) for row in rows] for name in METHODS}
    found |= {f"{name}, past the gate": [(row, row["methods"].get(name)) for row in rows] for name in GATED}
    run = {name: [(row, one) for row, one in pairs if one] for name, pairs in found.items()}
    return {name: pairs for name, pairs in run.items() if pairs}


def _group_cell(found: Sequence[Row | None]) -> str:
    used = [one for one in found if one]
    if not used:
        return "–"
    some = f", {len(used)} of them" if len(used) < len(found) else ""
    rates = " / ".join(_percent(_mean(used, key)) for key in ("acc", "asr", "ra"))
    return f"{_mean(used, 'der'):.3f} ({rates}{some})"


def costs_table(rows: Sequence[Row]) -> str:
    """Points of accuracy that each method takes from networks."""
    cells = []
    for name, pairs in list(_uses(rows).items())[1:]:  # without "before"
        lost = [(100 * (row["methods"]["before"]["acc"] - one["acc"]), name_of(row)) for row, one in pairs]
        untouched = sum(one["pruned"] == 0 for _, one in pairs)
        mean = f"{np.mean([points for points, _ in lost]):.1f}"
        cells.append([name, str(len(lost)), mean, f"{max(lost)[0]:.1f} ({max(lost)[1]})", str(untouched)])
    return table(["method", "networks", "mean loss of ACC", "largest", "nothing pruned"], cells)


def tracking_line(rows: Sequence[Row]) -> str:
    """How well the surrogate's success follows the true ASR, in words."""
    tracked = [rho for row in rows if np.isfinite(rho := tracking(row))]
    told = f"median {np.median(tracked):.2f}, lowest {min(tracked):.2f}" if tracked else "none"
    return (
        "Rank correlation of the surrogate's success and the true ASR over the candidates of u: "
        f"{told}; {len(tracked)} networks on which both vary."
    )


def tracking(row: Row) -> float:
    """Spearman's correlation over the candidates of u; not a number where one of the two never changes."""
    success, asr = ([one[key] for one in row["curve"]] for key in ("success", "asr"))
    return float(spearmanr(success, asr).statistic) if min(np.ptp(success), np.ptp(asr)) > 0 else float("nan")


def networks_table(rows: Sequence[Row]) -> str:
    """One line a network: each method, the class named, the patch, the gate."""
    cells = []
    for row in sorted(rows, key=lambda row: (row["dataset"], architecture_of(row), name_of(row))):
        truth = row["true_target"] if one_target(row) else row["kind"]
        named = f"{row['target']}" + (f" (true: {truth})" if works(row) and row["target"] != truth else "")
        patch = f"{row['patch']['size']}x{row['patch']['size']}, {row['patch']['success']:.0%}"
        gate = "passed" if row["accepted"] else "stopped"
        used = [as_used(row, name) for name in GROUPED]
        rates = [" / ".join(_percent(one[key]) for key in ("acc", "asr", "ra")) if one else "–" for one in used]
        cells.append([f"{name_of(row)} ({row['dataset']})", *rates, named, patch, gate])
    return table(["record", *GROUPED, "class", "patch, s", "gate"], cells)


def _mean(rows: Iterable[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path, help="the file that study.py wrote")
    gates = parser.add_mutually_exclusive_group()
    gates.add_argument(
        "--gate", nargs=2, type=float, metavar=("SIZE", "SUCCESS"), help="another gate than the lines' own"
    )
    gates.add_argument("--ratio", type=float, help="a gate by the ratio of the two lowest losses")
    options = parser.parse_args()
    rows = read_rows(options.lines)
    if options.gate:
        size, success = options.gate
        rows = behind(rows, lambda row: success_at(size)(row) >= success)
    elif options.ratio:
        rows = behind(rows, lambda row: ratio_of_losses(row) <= options.ratio)
    print(tables(rows))


if __name__ == "__main__":
    main()
