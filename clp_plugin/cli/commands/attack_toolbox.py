"""``bench attack --toolbox``: the toolbox's own attack in its own process; the record it made, judged by our evaluator."""

from __future__ import annotations

import time

from clp_plugin.cli.commands.attack import note_if_it_did_not_take
from clp_plugin.cli.console import emit_json, say
from clp_plugin.cli.option_values import parse_options
from clp_plugin.cli.requests import AttackRequest
from clp_plugin.cli.showing import show_metrics
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import RunRequest, RunsAttacks, require
from clp_plugin.records.opening import load_adapter
from clp_plugin.registry import load_catalogue


def attack_with_toolbox(request: AttackRequest, name: str, *, as_json: bool) -> None:
    """Run, evaluate, print."""
    adapter = load_adapter(load_catalogue(request.registry), name)
    toolbox = require(adapter, RunsAttacks, toolbox=name)
    device = pick_device(request.device)
    start = time.perf_counter()
    path = toolbox.run_attack(
        str(request.out),
        request.method,
        RunRequest(
            options={**toolbox.attack_options(request.for_toolbox), **parse_options(request.option)},
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
