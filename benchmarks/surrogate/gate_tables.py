"""The study's tables of the gate: its errors as it stands, and those of thresholds that other networks choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from gates import (
    STATISTICS,
    WRITTEN_DOWN,
    Errors,
    errors_of,
    judged_by_gate,
    leave_one_out,
    ratio_of_losses,
    separation,
    summed,
    transferred,
)
from layout import share, table
from lines import HALVES, Row, architecture_of, one_target, works


def gate_by_architecture(rows: Sequence[Row]) -> str:
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
    return table(heads, cells)


def gate_by_threshold(rows: Sequence[Row]) -> str:
    """Errors of the gate as it stands, and of thresholds that other networks choose."""
    judged = judged_by_gate(rows)
    development, held_out = ([row for row in judged if row["half"] == half] for half in HALVES)
    fixed: dict[str, Callable[[Row], bool]] = {
        "the gate as it stands": lambda row: bool(row["accepted"]),
        f"ratio of the two lowest losses ≤ {WRITTEN_DOWN}": lambda row: ratio_of_losses(row) <= WRITTEN_DOWN,
    }
    cells = [
        [name, "–", *(_errors(errors_of(part, passes)) for part in (held_out, judged)), ""]
        for name, passes in fixed.items()
    ]
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
    return "Errors: false alarms; misses (95 % intervals of the rates)\n\n" + table(heads, cells)


def _right(rows: Sequence[Row]) -> int:
    return sum(row["target"] == row["true_target"] for row in rows)


def _stopped(rows: Sequence[Row]) -> int:
    return sum(not row["accepted"] for row in rows)


def _errors(errors: Errors) -> str:
    return f"{share(errors.alarms, errors.clean)}; {share(errors.misses, errors.infected)}"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
