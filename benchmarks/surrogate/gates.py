"""Which number of a search tells infected networks from clean ones, and does its threshold hold on other networks?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from lines import Row, architecture_of, one_target, works
from scipy.stats import mannwhitneyu

Statistic = Callable[[Row], float]  # larger for a backdoor


@dataclass(frozen=True)
class Errors:
    """How often a gate was wrong.

    Attributes:
        alarms: Networks without a working backdoor that it let pass.
        clean: Networks without a working backdoor.
        misses: Networks with one that it stopped.
        infected: Networks with one.
    """

    alarms: int
    clean: int
    misses: int
    infected: int


def judged_by_gate(rows: Sequence[Row]) -> list[Row]:
    """The networks that a gate is judged by: without a working backdoor, or with one on a class that a search can name."""
    return [row for row in rows if one_target(row) or not works(row)]


def behind(rows: Sequence[Row], passes: Callable[[Row], bool]) -> list[Row]:
    """The lines as they would be behind another gate: whatever it lets pass was measured past any."""
    return [row if "error" in row else {**row, "accepted": passes(row)} for row in rows]


def errors_of(rows: Sequence[Row], passed: Callable[[Row], bool]) -> Errors:
    """Count a gate's errors on these networks."""
    infected = [passed(row) for row in rows if works(row)]
    clean = [passed(row) for row in rows if not works(row)]
    return Errors(sum(clean), len(clean), infected.count(False), len(infected))


def chosen_threshold(infected: Sequence[float], clean: Sequence[float]) -> float:
    """The threshold of the least false alarm rate + miss rate; of equal ones the middle of the widest gap.

    Args:
        infected: The statistic on networks with a backdoor, at least one.
        clean: The statistic on networks without, at least one.
    """
    values = np.unique([*infected, *clean])
    cuts = np.array([-np.inf, *(values[:-1] + values[1:]) / 2, np.inf])
    gaps = np.array([0.0, *np.diff(values), 0.0])
    wrong = [np.mean(np.less(infected, cut)) + np.mean(np.greater_equal(clean, cut)) for cut in cuts]
    best = np.flatnonzero(np.isclose(wrong, min(wrong)))
    return float(cuts[best[np.argmax(gaps[best])]])


def transferred(statistic: Statistic, chosen_on: Sequence[Row], used_on: Sequence[Row]) -> tuple[float, Errors] | None:
    """Choose a threshold on some networks and count its errors on others; None where one kind is missing among the first."""
    infected = [statistic(row) for row in chosen_on if works(row)]
    clean = [statistic(row) for row in chosen_on if not works(row)]
    if not infected or not clean:
        return None
    threshold = chosen_threshold(infected, clean)
    return threshold, errors_of(used_on, lambda row: statistic(row) >= threshold)


def leave_one_out(statistic: Statistic, rows: Sequence[Row]) -> list[tuple[str, float, Errors]]:
    """Of each architecture: the threshold that all others choose, and its errors on this one."""
    found = []
    for left_out in dict.fromkeys(map(architecture_of, rows)):
        others = [row for row in rows if architecture_of(row) != left_out]
        result = transferred(statistic, others, [row for row in rows if architecture_of(row) == left_out])
        if result is not None:
            found.append((left_out, *result))
    return found


def summed(errors: Sequence[Errors]) -> Errors:
    """The errors of several groups of networks together."""
    return Errors(
        sum(one.alarms for one in errors), sum(one.clean for one in errors),
        sum(one.misses for one in errors), sum(one.infected for one in errors),
    )  # fmt: skip


def separation(statistic: Statistic, rows: Sequence[Row]) -> float:
    """Area under the ROC curve: the chance that the statistic is larger on an infected network than on a clean one."""
    infected = [statistic(row) for row in rows if works(row)]
    clean = [statistic(row) for row in rows if not works(row)]
    if not infected or not clean:
        return float("nan")
    return float(mannwhitneyu(infected, clean).statistic) / (len(infected) * len(clean))


def success_at(size: float) -> Statistic:
    """Success of the patch if its side is at most ``size``, else 0."""
    return lambda row: row["patch"]["success"] if row["patch"]["size"] <= size else 0.0


def smallness(row: Row) -> float:
    """Minus the side of the first patch of the gate's success; one more than the largest side for a search without one."""
    return -row["patch"]["size"] if row["patch"]["success"] >= row["gate"]["success"] else -6.0


def lead_over_rival(row: Row) -> float:
    """Success of a patch that passes the gate minus that of the next easiest class, which is sought there; else 0."""
    return row["patch"]["success"] - row["rival"]["success"] if row["rival"] else 0.0


def gap_of_losses(row: Row) -> float:
    """Cross-entropy of the next easiest class minus that of the easiest."""
    lowest, second = sorted(row["losses"].values())[:2]
    return float(second - lowest)


def ratio_of_losses(row: Row) -> float:
    """Cross-entropy of the easiest class over that of the next easiest: small for a backdoor; 1 where both are 0."""
    lowest, second = sorted(row["losses"].values())[:2]
    return float(lowest / second) if second else 1.0


def anomaly_of_losses(row: Row) -> float:
    """Median cross-entropy of all classes minus the lowest, in 1.4826 median absolute deviations, as Neural Cleanse has it."""
    losses = np.array(list(row["losses"].values()))
    deviation = 1.4826 * np.median(np.abs(losses - np.median(losses)))
    return float((np.median(losses) - losses.min()) / max(deviation, 1e-12))


WRITTEN_DOWN = 0.2  # the largest ratio of losses that passes; before any held-out network was run (docs/data-free.md)
STATISTICS: Mapping[str, Statistic] = {
    "success of a patch of at most 3x3": success_at(3),
    "success of a patch of at most 4x4": success_at(4),
    "smallest side with 80 % success": smallness,
    "lead over the next class's patch": lead_over_rival,
    "gap of losses to the next class": gap_of_losses,
    "minus ratio of the two lowest losses": lambda row: -ratio_of_losses(row),
    "anomaly of the lowest loss (MAD)": anomaly_of_losses,
    "pattern's norm": lambda row: -row["pattern"]["norm"],
}
