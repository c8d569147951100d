"""``bench defend``: one method on one record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.bench.run import DefenseRun, make_defense, plan_defense, run_defense, store_run
from clp_plugin.cli.commands.scan import note_layers
from clp_plugin.cli.console import command_line, emit_json, progress_bar, say
from clp_plugin.cli.requests import DefendRequest
from clp_plugin.cli.showing import defense_json, show_defense
from clp_plugin.evidence.sweep import SweepRow, parse_range
from clp_plugin.files.locks import claimed
from clp_plugin.files.places import folder_to_replace, inputs_kept
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import ReadsRecords, WritesResults
from clp_plugin.records.opening import find_adapter, locate_record
from clp_plugin.registry import load_catalogue
from clp_plugin.selection.outliers import parse_layers
from clp_plugin.store.layout import changed_options, clear_dead_runs, require_replaceable


def defend_record(request: DefendRequest, *, as_json: bool) -> None:
    """Run, store, print."""
    catalogue = load_catalogue(request.registry)
    path = locate_record(request.record, toolbox=request.toolbox, root=request.root, catalogue=catalogue)
    clear_dead_runs(path)
    adapter = find_adapter(path, toolbox=request.toolbox, catalogue=catalogue, data=request.data)
    values = [] if request.sweep is None else parse_range(request.sweep)
    record = adapter.open(path, trust=request.trust)
    dataset = record.provenance.dataset
    defense, options = make_defense(catalogue, request.method, dataset, request.options, scale=request.scale)
    if request.scale != "paper":
        usual = make_defense(catalogue, request.method, dataset, request.options)[1]
        say(f"scale {request.scale}: {changed_options(options, usual) or 'changes nothing for ' + request.method}")
    planned = plan_defense(
        record, request.method, defense, options, seed=request.seed, device=pick_device(request.device),
        command=command_line(), n_budget=request.n_budget, protocol=request.protocol,
    )  # fmt: skip
    folder = request.out or planned.folder(adapter)
    with inputs_kept(path), claimed(folder_to_replace(folder)):
        again = require_replaceable(folder, planned.facts, force=request.force)
        with progress_bar(request.method) as report:
            run = run_defense(planned, progress=report)
        if run.repaired.view is not None and "layers" in options:
            note_layers(run.repaired.view, parse_layers(options["layers"]), run.repaired.scores)
        rows = _swept(run, values, adapter)
        names = store_run(
            run, folder, adapter=adapter, rows=rows, draw=lambda place: _draw(place, run, rows), keep_others=again
        )
    if as_json:
        emit_json(defense_json(run, folder))
    else:
        show_defense(run)
        say(f"wrote {', '.join(names)} to {folder}")


def _swept(run: DefenseRun, values: Sequence[float], adapter: ReadsRecords) -> list[SweepRow]:
    """The rows of the toolbox's sweep file."""
    if not values:
        return []
    if run.repaired.scores is None or not isinstance(adapter, WritesResults):
        say("nothing swept: --sweep is for clp on a toolbox's record; on any record there is `bench sweep`")
        return []
    with progress_bar("sweep") as report:
        return run.sweep(values, progress=report)


def _draw(place: Path, run: DefenseRun, rows: Sequence[SweepRow]) -> None:
    """The two figures of a sweep."""
    if not rows or run.repaired.scores is None or run.repaired.mask is None:
        return
    from clp_plugin.reports.figures import channel_scores_figure, save_figure, sweep_figure

    u = run.threshold
    marked = {"chosen_u" if run.outcome.options.get("u") == "auto" else "default_u": u}
    save_figure(channel_scores_figure(run.repaired.scores, run.repaired.mask, u), place / "scores")
    save_figure(sweep_figure([row.to_json() for row in rows], **marked), place / "sweep")
