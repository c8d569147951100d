"""How the tables of the study write a table and a rate."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest


def table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *cells])


def share(count: int, total: int) -> str:
    """Count and Wilson's 95 % interval of the rate, such as ``1 of 20 (1 to 24 %)``."""
    if not total:
        return "–"
    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return f"{count} of {total} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"
