"""``bench demo``: attack, scan, repair, explain, on images that come with scikit-learn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from clp_plugin.bench.run import DefenseRun, make_defense, plan_defense, run_defense, store_run
from clp_plugin.cli.commands.attack import made_record
from clp_plugin.cli.commands.correlate import write_correlation, write_sweep
from clp_plugin.cli.console import command_line, emit_json, percent, progress_bar, say
from clp_plugin.cli.showing import defense_json, show_correlation, show_defense, show_sweep
from clp_plugin.errors import ConfigError
from clp_plugin.evidence.correlation import Correlation, correlate
from clp_plugin.evidence.sweep import SweepRow, parse_range
from clp_plugin.evidence.tac import trigger_activated_change
from clp_plugin.files.atomic import filled_folder
from clp_plugin.files.places import folder_to_fill
from clp_plugin.images import ArrayImages
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import ChecksAttacks, ReadsRecords, RunsAttacks, require
from clp_plugin.records.exchange import RunRequest
from clp_plugin.records.opening import BENCH, load_adapter
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.store.layout import DEFENSES

SWEEP = "0:8:0.5"
_WORKED_ASR = 0.10
_WORKED_ACC_DROP = 0.05
_EXAMPLES = 8


def demo(*, out: Path, seed: int, device: str, as_json: bool) -> None:
    """Run the whole path once and say plainly what happened at the default u."""
    folder_to_fill(out)
    start = time.perf_counter()
    device = pick_device(device)
    catalogue = load_catalogue()
    adapter = load_adapter(catalogue, BENCH)
    _attack(adapter, out, seed, device, catalogue)
    record = adapter.open(out)
    defense, options = make_defense(catalogue, "clp", record.provenance.dataset, {})
    planned = plan_defense(record, "clp", defense, options, seed=seed, device=device, command=command_line())
    run = run_defense(planned)
    repaired = out / DEFENSES / "clp"
    store_run(run, repaired, adapter=adapter, keep_others=True)
    with progress_bar("sweep") as report:
        rows = run.sweep(parse_range(SWEEP), progress=report)
    with filled_folder(out / "figures") as folder:
        found = _write_figures(folder, run, rows)
    seconds = time.perf_counter() - start
    if as_json:
        emit_json(_report(run, repaired, rows, found, seconds))
        return
    show_defense(run)
    show_sweep(rows)
    show_correlation(found)
    say(verdict(run))
    say(f"figures and tables in {out / 'figures'}, repaired weights in {repaired}; {seconds:.0f} s in all")


def _attack(adapter: ReadsRecords, out: Path, seed: int, device: str, catalogue: Catalogue) -> None:
    """Make the attacked model, unless a record is there already, be it of another seed."""
    bench = require(adapter, RunsAttacks, toolbox=BENCH)
    options = bench.attack_options({"preset": "demo"})
    wanted = RunRequest(options, device=device, seed=seed, report=say, reuse=True, catalogue=catalogue)
    try:
        require(adapter, ChecksAttacks, toolbox=BENCH).check_attack(str(out), "badnets", wanted)
    except ConfigError:
        say(f"using the attacked model in {out}")
        return
    with made_record(bench, str(out), "badnets", wanted):
        pass


def verdict(run: DefenseRun) -> str:
    """One sentence on whether the default u did what the paper says, without looking at any other u."""
    before, after = run.before, run.after
    u = "none" if run.threshold is None else f"{run.threshold:g}"
    change = (
        f"u = {u}, {run.outcome.pruned} channels pruned: ASR {percent(before.asr)} to {percent(after.asr)}, "
        f"ACC {percent(before.acc)} to {percent(after.acc)}"
    )
    if after.asr <= _WORKED_ASR and before.acc - after.acc <= _WORKED_ACC_DROP:
        return f"CLP removed the backdoor at its default {change}."
    return f"CLP did NOT do what the paper says at its default {change}. The sweep above shows what other u would do."


def _report(
    run: DefenseRun, repaired: Path, rows: list[SweepRow], found: Correlation, seconds: float
) -> dict[str, Any]:
    return {
        **defense_json(run, repaired),
        "rows": [row.to_json() for row in rows],
        "pooled": found.pooled.to_json(),
        "seconds_total": seconds,
    }


def _write_figures(folder: Path, run: DefenseRun, rows: list[SweepRow]) -> Correlation:
    from clp_plugin.reports.figures import channel_scores_figure, example_images_figure, save_figure

    view, scores, mask, record = run.repaired.view, run.repaired.scores, run.repaired.mask, run.record
    if view is None or scores is None or mask is None:
        raise ConfigError("the demo shows what clp found; the catalogue's clp returned no view, scores or mask")
    tac = trigger_activated_change(view, record, device=run.outcome.device)
    found = correlate(scores, tac)
    write_correlation(folder, scores, tac, mask, found)
    write_sweep(folder, rows, run.threshold)
    save_figure(channel_scores_figure(scores, mask, run.threshold), folder / "scores")
    picks = np.arange(min(_EXAMPLES, len(record.triggered.images)))
    clean, triggered = record.clean.take(record.triggered.clean_index[picks]), record.triggered.images.take(picks)
    if isinstance(clean, ArrayImages) and isinstance(triggered, ArrayImages):
        captions = [str(label) for label in triggered.labels]
        save_figure(example_images_figure(clean.pixels, triggered.pixels, captions=captions), folder / "examples")
    return found
