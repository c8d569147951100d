"""``bench defend --impl toolbox``: the toolbox's own defense in its own process, judged by our evaluator."""

from __future__ import annotations

from clp_plugin.bench.toolbox_run import run_toolbox_defense
from clp_plugin.cli.console import command_line, emit_json, say
from clp_plugin.cli.requests import DefendRequest
from clp_plugin.cli.showing import show_toolbox_defense, toolbox_defense_json
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import RunsDefenses, require
from clp_plugin.records.exchange import RunRequest
from clp_plugin.records.opening import find_adapter, locate_record
from clp_plugin.registry import load_catalogue
from clp_plugin.store.layout import clear_dead_runs


def defend_with_toolbox(request: DefendRequest, *, as_json: bool) -> None:
    """Run or read back, evaluate, store, print. A run that fails is stored as failed, beside what it printed."""
    catalogue = load_catalogue(request.registry)
    path = locate_record(request.record, toolbox=request.toolbox, root=request.root, catalogue=catalogue)
    clear_dead_runs(path)
    adapter = find_adapter(path, toolbox=request.toolbox, catalogue=catalogue)
    driver = require(adapter, RunsDefenses, toolbox=request.toolbox or str(path))
    device = pick_device(request.device)
    asked = RunRequest(
        options=request.options,
        root=request.root,
        device=device,
        seed=request.seed,
        time_limit=request.time_limit,
        force=request.force,
        trust=request.trust,
        fast_cpu=request.fast_cpu,
        report=(lambda line: None) if as_json else say,
    )
    record = adapter.open(path, trust=request.trust)
    result, run = run_toolbox_defense(
        driver, record, method=request.method, request=asked, reuse=request.reuse, command=command_line()
    )
    if as_json:
        emit_json(toolbox_defense_json(run, result))
    else:
        show_toolbox_defense(run, result)
