"""The tables of a study of the surrogate, from its lines alone, in Markdown.

python benchmarks/surrogate/tables.py study.jsonl [--gate 4 0.8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from gates import STATISTICS, Errors, errors_of, judged_by_gate, leave_one_out, separation, share, summed, transferred
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
    parts += ["### The gate's threshold, chosen on some networks and used on others", gate_table(done)] if done else []
    parts += [f"failed: {row['record']}: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join(parts)


def half_tables(rows: Sequence[Row]) -> list[str]:
    """What the methods do to infected networks, what they cost the others, the gate, groups and single networks."""
    infected, idle = [row for row in rows if works(row)], [row for row in rows if not works(row)]
    parts = []
    if infected:
        parts += [f"**{len(infected)} networks with a working backdoor**, means in percent", methods_table(infected)]
        parts += ["DER (ACC / ASR in percent), means of groups", groups_table(infected)]
    if idle:
        parts += [f"**{len(idle)} networks without one**: what each method costs them", costs_table(idle)]
    parts += ["**The class named and the gate**, with 95 % intervals of the rates", gates_table(rows)]
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
        behind = np.array([100 * (one["der"] - row["methods"]["best u (oracle)"]["der"]) for row, one in pairs])
        interval = "({:+.1f} to {:+.1f})".format(*interval_of_mean(behind))
        ders = [
            f"{_mean(used, 'der'):.3f}",
            f"{behind.mean():+.1f} {interval}",
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
    return _table(heads, cells)


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
    return _table(["", "networks", *GROUPED], cells)


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
    return f"{_mean(used, 'der'):.3f} ({_percent(_mean(used, 'acc'))} / {_percent(_mean(used, 'asr'))}{some})"


def costs_table(rows: Sequence[Row]) -> str:
    """Points of accuracy that each method takes from networks that need no repair."""
    cells = []
    for name, pairs in list(_uses(rows).items())[1:]:  # without "before"
        lost = [(100 * (row["methods"]["before"]["acc"] - one["acc"]), name_of(row)) for row, one in pairs]
        untouched = sum(one["pruned"] == 0 for _, one in pairs)
        mean = f"{np.mean([points for points, _ in lost]):.1f}"
        cells.append([name, str(len(lost)), mean, f"{max(lost)[0]:.1f} ({max(lost)[1]})", str(untouched)])
    return _table(["method", "networks", "mean loss of ACC", "largest", "nothing pruned"], cells)


def gates_table(rows: Sequence[Row]) -> str:
    """Class named and the gate's misses and false alarms with intervals, in all and for each architecture."""
    cells = []
    for group in ("all", *sorted({architecture_of(row) for row in rows})):
        own = [row for row in rows if group in ("all", architecture_of(row))]
        single = [row for row in own if works(row) and one_target(row)]
        passed = [row for row in single if row["accepted"]]
        several = [row for row in own if works(row) and not one_target(row)]
        clean, failed = (
            [row for row in own if not works(row) and (row["poison_rate"] == 0) == is_clean]
            for is_clean in (True, False)
        )
        counts = [(_right(part), len(part)) for part in (single, passed)]
        counts += [(_stopped(part), len(part)) for part in (single, several)]
        counts += [(len(part) - _stopped(part), len(part)) for part in (clean, failed)]
        cells.append([group, *(share(count, total) for count, total in counts)])
    heads = [
        "", "class named right", "where the gate passed", "misses, one target", "misses, all-to-all", "false alarms, clean",
        "false alarms, attack failed",
    ]  # fmt: skip
    return _table(heads, cells)


def tracking_line(rows: Sequence[Row]) -> str:
    """How well the surrogate's success follows the true ASR, in words."""
    tracked = [rho for row in rows if np.isfinite(rho := tracking(row))]
    told = f"median {np.median(tracked):.2f}, lowest {min(tracked):.2f}" if tracked else "none"
    return (
        "Rank correlation of the surrogate's success and the true ASR over the candidates of u: "
        f"{told}; {len(tracked)} networks on which both vary."
    )


def _right(rows: Sequence[Row]) -> int:
    return sum(row["target"] == row["true_target"] for row in rows)


def _stopped(rows: Sequence[Row]) -> int:
    return sum(not row["accepted"] for row in rows)


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
    return _table(["record", *GROUPED, "class", "patch, s", "gate"], cells)


def gate_table(rows: Sequence[Row]) -> str:
    """Errors of the gate as it stands, and of thresholds that other networks choose."""
    judged = judged_by_gate(rows)
    development, held_out = ([row for row in judged if row["half"] == half] for half in HALVES)
    as_it_stands = [_errors(errors_of(part, lambda row: bool(row["accepted"]))) for part in (held_out, judged)]
    cells = [["the gate as it stands", "–", *as_it_stands, ""]]
    for name, statistic in STATISTICS.items():
        folds = leave_one_out(statistic, judged)
        moved = transferred(statistic, development, held_out)
        cells.append([
            name,
            _number(separation(statistic, judged)),
            f"{_errors(moved[1])}, from {moved[0]:.3g}" if moved else "–",
            _errors(summed([errors for *_, errors in folds])) if folds else "–",
            ", ".join(sorted({f"{threshold:.3g}" for _, threshold, _ in folds})),
        ])  # fmt: skip
    heads = [
        "statistic", "area under ROC", "chosen on development, used on held-out", "one architecture left out",
        "thresholds that the others chose",
    ]  # fmt: skip
    return "Errors: false alarms; misses (95 % intervals of the rates)\n\n" + _table(heads, cells)


def _errors(errors: Errors) -> str:
    return f"{share(errors.alarms, errors.clean)}; {share(errors.misses, errors.infected)}"


def _mean(rows: Iterable[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path, help="the file that study.py wrote")
    parser.add_argument(
        "--gate", nargs=2, type=float, metavar=("SIZE", "SUCCESS"), help="another gate than the lines' own"
    )
    options = parser.parse_args()
    print(tables(read_rows(options.lines, gate=options.gate)))


if __name__ == "__main__":
    main()
