"""What commands show of records, runs and evidence: tables for people, objects for ``--json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.cli.console import percent, say, show_table
from clp_plugin.store.layout import MASK, OUTCOME, TOOLBOX_OUTCOME, WEIGHTS
from clp_plugin.store.outcomes import Outcome
from clp_plugin.types import Metrics

if TYPE_CHECKING:
    from clp_plugin.bench.run import DefenseRun
    from clp_plugin.evidence.correlation import Correlation
    from clp_plugin.evidence.sweep import SweepRow
    from clp_plugin.records.exchange import ToolboxResult


def show_metrics(title: str, rows: Mapping[str, Metrics], extra: Mapping[str, Any] | None = None) -> None:
    """A table in percent: ACC, ASR, RA and the base rate of each model, with one more column if given."""
    columns = ["model", "ACC %", "ASR %", "RA %", "base rate %", *(["pruned"] if extra else [])]
    show_table(
        title,
        columns,
        [
            (
                name, 100 * m.acc, 100 * m.asr, 100 * m.ra, 100 * m.base_rate, *([extra.get(name, "")] if extra else []),
            )
            for name, m in rows.items()
        ],
    )  # fmt: skip


def defense_json(run: DefenseRun, folder: Path) -> dict[str, Any]:
    """The object that ``bench defend --json`` prints."""
    return {
        **_measured(run),
        "der": run.outcome.der,
        "pruned": run.outcome.pruned,
        **_cost(run),
        "mask": None if run.repaired.mask is None else str(folder / MASK),
        "weights": str(folder / WEIGHTS),
        "outcome": str(folder / OUTCOME),
    }


def toolbox_defense_json(run: DefenseRun, result: ToolboxResult) -> dict[str, Any]:
    """The object that ``bench defend --impl toolbox --json`` prints."""
    return {
        **_measured(run),
        "reported": run.outcome.reported,
        "der": run.outcome.der,
        **_cost(run),
        "folder": str(result.folder),
        "outcome": str(result.folder / TOOLBOX_OUTCOME),
    }


def _measured(run: DefenseRun) -> dict[str, Any]:
    return {
        "method": run.outcome.method,
        "implementation": run.outcome.implementation,
        "options": run.outcome.options,
        "before": run.before.to_json(),
        "after": run.after.to_json(),
    }


def _cost(run: DefenseRun) -> dict[str, Any]:
    return {"seconds": run.outcome.seconds, "budget": run.outcome.budget, "protocol": run.outcome.protocol}


def show_defense(run: DefenseRun) -> None:
    """Before and after, and what was pruned."""
    after = f"after {run.outcome.method}" + (" (oracle)" if run.outcome.protocol == "oracle" else "")
    pruned = {"before": 0, after: run.outcome.pruned if run.outcome.pruned is not None else "-"}
    show_metrics(_title(run), {"before": run.before, after: run.after}, pruned)
    if run.repaired.mask is not None and len(run.repaired.mask):
        say(f"pruned {run.repaired.mask!r}")
    for name in ("published_rule", "finding"):
        if note := run.outcome.log.get(name):
            say(str(note))
    for limit in run.outcome.log.get("limits", []):
        say(f"note: {limit}")
    say(f"DER {run.outcome.der:.3f}, {run.outcome.seconds:.2f} s, budget: {run.outcome.budget}")


def show_toolbox_defense(run: DefenseRun, result: ToolboxResult) -> None:
    """Before and after a toolbox's own script, and whether its own numbers are ours."""
    outcome = run.outcome
    whose = f"after {outcome.implementation}'s {outcome.method}"
    show_metrics(_title(run), {"before": run.before, whose: run.after})
    say(f"{_agreement(outcome)}; DER {outcome.der:.3f}, {outcome.seconds:.0f} s, saw: {outcome.budget}")
    if result.oracle:
        say(f"oracle: {result.oracle}")
    say(f"wrote {TOOLBOX_OUTCOME} beside the toolbox's own files in {result.folder}")


def _title(run: DefenseRun) -> str:
    where = run.record.provenance
    return f"{where.attack} on {where.dataset}, {where.architecture}"


def _agreement(outcome: Outcome) -> str:
    """Whether the script's own numbers and ours are the same, image by image."""
    apart = outcome.images_apart
    if not apart:
        return "the script stored no numbers of its own"
    if not any(apart.values()):
        return f"its own {', '.join(key.upper() for key in apart)} are the same to the last image"
    told = outcome.reported or {}
    said = ", ".join(f"{key.upper()} {percent(told[key])} ({n} images apart)" for key, n in apart.items())
    return f"it said itself: {said}"


def show_correlation(found: Correlation) -> None:
    """A row a layer; the reason where a coefficient is not defined."""
    show_table(
        "UCLC and TAC over the channels of each layer (95 % bootstrap intervals)",
        ("layer", "channels", "Pearson", "interval", "Spearman", "interval"),
        [
            (e.name, e.n, e.pearson, _interval(e.pearson_ci), e.spearman, _interval(e.spearman_ci) or e.reason)
            for e in (*found.layers, found.pooled)
        ],
    )


def _interval(ci: tuple[float, float]) -> str:
    return "" if math.isnan(ci[0]) else f"{ci[0]:.2f} to {ci[1]:.2f}"


def show_sweep(rows: list[SweepRow]) -> None:
    """A row a value of u, in percent."""
    show_table(
        "u-sweep (measured on test images: choosing u by it would be an oracle)",
        ("u", "pruned", "ACC %", "ASR %", "RA %"),
        [(f"{row.u:g}", row.pruned, 100 * row.acc, 100 * row.asr, 100 * row.ra) for row in rows],
    )
