"""``bench attack --toolbox``: the toolbox's own attack in its own process; the record it made, judged by our evaluator."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clp_plugin.cli.commands.attack import note_if_it_did_not_take
from clp_plugin.cli.console import emit_json, say
from clp_plugin.cli.option_values import parse_options
from clp_plugin.cli.showing import show_metrics
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import RunRequest, RunsAttacks, require
from clp_plugin.records.opening import load_adapter
from clp_plugin.registry import load_catalogue


@dataclass(frozen=True)
class ToolboxAttackRequest:
    """The options of ``bench attack --toolbox``, as typed.

    Attributes:
        given: Options in our words, those that were given.
        options: ``NAME=VALUE`` in the script's words; they win.
    """

    name: Path
    method: str
    toolbox: str
    root: Path | None = None
    given: Mapping[str, object] = field(default_factory=dict)
    options: Sequence[str] = ()
    time_limit: float | None = None
    fast_cpu: bool = False
    seed: int = 0
    device: str = "auto"
    force: bool = False
    registry: Path | None = None


def attack_with_toolbox(request: ToolboxAttackRequest, *, as_json: bool) -> None:
    """Run, evaluate, print."""
    adapter = load_adapter(load_catalogue(request.registry), request.toolbox)
    toolbox = require(adapter, RunsAttacks, toolbox=request.toolbox)
    device = pick_device(request.device)
    start = time.perf_counter()
    path = toolbox.run_attack(
        str(request.name),
        request.method,
        RunRequest(
            options={**toolbox.attack_options(request.given), **parse_options(request.options)},
            root=request.root,
            device=device,
            seed=request.seed,
            time_limit=request.time_limit,
            force=request.force,
            fast_cpu=request.fast_cpu,
            report=(lambda line: None) if as_json else say,
        ),
    )
    seconds = time.perf_counter() - start
    record = adapter.open(path)
    metrics = evaluate(record.model, record, device=device)
    note_if_it_did_not_take(metrics, "train longer or poison more")
    if as_json:
        emit_json({"record": str(path), "seconds": seconds, **metrics.to_json()})
    else:
        show_metrics(f"attacked model in {path}", {request.method: metrics})
