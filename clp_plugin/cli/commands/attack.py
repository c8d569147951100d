"""``bench attack``: a record made by the built-in bench or by a toolbox's own script, judged by our evaluator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clp_plugin.cli.console import emit_json, percent, progress_bar, say
from clp_plugin.cli.requests import AttackRequest
from clp_plugin.cli.showing import show_metrics
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.files.option_values import parse_options
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import RunsAttacks, require
from clp_plugin.records.exchange import RunRequest
from clp_plugin.records.opening import BENCH, load_adapter
from clp_plugin.registry import load_catalogue
from clp_plugin.types import Metrics

_SUCCESSFUL_ASR = 0.9  # ASR below which a record is not what its name says


def attack_record(request: AttackRequest, *, as_json: bool) -> None:
    """Train, store, evaluate, print."""
    catalogue = load_catalogue(request.registry)
    name = request.toolbox or BENCH
    adapter = load_adapter(catalogue, name)
    toolbox = require(adapter, RunsAttacks, toolbox=name)
    wanted = RunRequest(
        options={**toolbox.attack_options(request.given), **parse_options(request.option)},
        root=request.root,
        device=pick_device(request.device),
        seed=request.seed,
        time_limit=request.time_limit,
        force=request.force,
        fast_cpu=request.fast_cpu,
        report=(lambda line: None) if as_json else say,
        catalogue=catalogue,
    )
    start = time.perf_counter()
    with made_record(toolbox, str(request.out), request.method, wanted) as path:
        seconds = time.perf_counter() - start
        record = adapter.open(path)
        metrics = evaluate(record.model, record, device=wanted.device)
        if record.provenance.poison_rate:
            note_if_it_did_not_take(metrics, "train longer, poison more, or keep the trigger in its place")
        if as_json:
            emit_json({"record": str(path), "seconds": seconds, **metrics.to_json()})
        else:
            show_metrics(f"attacked model in {path}", {record.provenance.attack: metrics})


@contextlib.contextmanager
def made_record(
    toolbox: RunsAttacks, name: str, method: str, request: RunRequest, *, label: str = "training"
) -> Iterator[Path]:
    """The record of an attack, made under a progress bar; it may count as unfinished until the block ends well."""
    with contextlib.ExitStack() as opened:
        with progress_bar(label) as report:
            path = opened.enter_context(toolbox.attacked(name, method, replace(request, progress=report)))
        yield path


def note_if_it_did_not_take(metrics: Metrics, remedy: str) -> None:
    """A record whose ASR is low is not what its name says."""
    if metrics.asr < _SUCCESSFUL_ASR:
        say(
            f"note: the attack did not take: ASR {percent(metrics.asr)}, where clean images give "
            f"{percent(metrics.base_rate)}; {remedy}"
        )
