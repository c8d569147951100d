"""``bench defend``: one method on one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clp_plugin.bench import DefenseRun, make_defense, run_defense, save_defense
from clp_plugin.commands.attack import show_metrics
from clp_plugin.console import command_line, emit_json, pick_device, progress_bar, say
from clp_plugin.records import open_record
from clp_plugin.registry import load_catalogue
from clp_plugin.types import Record


@dataclass(frozen=True)
class DefendRequest:
    """The options of ``bench defend``, as typed."""

    record: Path
    method: str = "clp"
    options: Mapping[str, Any] = field(default_factory=dict)
    toolbox: str | None = None
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    trust: bool = False
    registry: Path | None = None


def defend_record(request: DefendRequest, *, as_json: bool) -> None:
    """Run, store, print."""
    catalogue = load_catalogue(request.registry)
    record = open_record(request.record, toolbox=request.toolbox, trust=request.trust, catalogue=catalogue)
    defense, options = make_defense(catalogue, request.method, record.provenance.dataset, request.options)
    with progress_bar(request.method) as report:
        run = run_defense(
            record,
            request.method,
            defense,
            options,
            seed=request.seed,
            device=pick_device(request.device),
            command=command_line(),
            progress=report,
        )
    folder = request.out or request.record / "defense" / request.method / slug(options, request.seed)
    paths = save_defense(run, folder)
    if as_json:
        emit_json(defense_json(run, paths))
    else:
        show_defense(record, run)
        say(f"wrote {', '.join(Path(path).name for path in paths.values())} to {folder}")


def defense_json(run: DefenseRun, paths: Mapping[str, str]) -> dict[str, Any]:
    """What ``bench defend --json`` prints."""
    return {
        "method": run.outcome.method,
        "options": run.outcome.options,
        "before": run.before.to_json(),
        "after": run.after.to_json(),
        "der": run.outcome.der,
        "pruned": run.outcome.pruned,
        "seconds": run.outcome.seconds,
        "mask": paths.get("mask"),
        "weights": paths["weights"],
        "outcome": paths["outcome"],
    }


def show_defense(record: Record, run: DefenseRun) -> None:
    """Before and after, and what was pruned."""
    after = f"after {run.outcome.method}"
    pruned = {"before": 0, after: run.outcome.pruned if run.outcome.pruned is not None else "-"}
    show_metrics(
        f"{record.provenance.attack} on {record.provenance.dataset}, {record.provenance.architecture}",
        {"before": run.before, after: run.after},
        pruned,
    )
    if run.repaired.mask is not None and len(run.repaired.mask):
        say(f"pruned {run.repaired.mask!r}")
    say(f"DER {run.outcome.der:.3f}, {run.outcome.seconds:.2f} s, budget: {run.outcome.budget}")


def slug(options: Mapping[str, Any], seed: int) -> str:
    """A folder name that tells runs of different options apart: ``u3-paper-reshaped-dataflow-seed0``."""
    parts = [
        f"{name}{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
        for name, value in options.items()
    ]
    return "-".join([*parts, f"seed{seed}"]).replace("/", "_")
