"""``bench defend --impl toolbox``: the toolbox's own defense in its own process, judged by our evaluator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_plugin.cli.commands.attack import show_metrics
from clp_plugin.cli.commands.defend import DefendRequest
from clp_plugin.cli.console import command_line, emit_json, percent, say
from clp_plugin.errors import ToolboxError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import RunRequest, RunsDefenses, ToolboxResult, require
from clp_plugin.records.opening import find_adapter, locate_record
from clp_plugin.registry import load_catalogue
from clp_plugin.store.layout import LOGS
from clp_plugin.store.outcomes import Outcome, StoredMetrics, save_outcome
from clp_plugin.types import Metrics, Record, defense_effectiveness

OUTCOME = "clp_plugin_outcome.json"  # beside the toolbox's own files, so it says whose it is


@dataclass(frozen=True)
class ToolboxRunOptions:
    """What only a toolbox's own scripts need.

    Attributes:
        time_limit: Seconds, or None.
        fast_cpu: bfloat16 on the CPU where the script asks for mixed precision.
        reuse: Read back an earlier result instead of running.
        quiet: Do not show what the script prints.
    """

    time_limit: float | None = None
    fast_cpu: bool = False
    reuse: bool = False
    quiet: bool = False


def defend_with_toolbox(request: DefendRequest, how: ToolboxRunOptions, *, as_json: bool) -> None:
    """Run or read back, evaluate, store, print. A run that fails is stored as failed, beside what it printed."""
    catalogue = load_catalogue(request.registry)
    path = locate_record(request.record, toolbox=request.toolbox, root=request.root, catalogue=catalogue)
    adapter = find_adapter(path, toolbox=request.toolbox, catalogue=catalogue)
    driver = require(adapter, RunsDefenses, toolbox=request.toolbox or str(path))
    device = pick_device(request.device)
    record = adapter.open(path, trust=request.trust)
    if how.reuse:
        result = driver.read_defense(path, request.method)
    else:
        with _failure_stored(request, record, path / LOGS / f"{request.method}.json", device):
            result = _run(driver, path, request, how, device)
    before = evaluate(record.model, record, device=device)
    after = evaluate(result.model, record, device=device)
    outcome = _outcome(request, result, record, before, after, device=device)
    save_outcome(outcome, result.folder / OUTCOME)
    if as_json:
        emit_json(_json(outcome, result, before, after))
    else:
        _show(outcome, record, result, before, after)


def _run(
    adapter: RunsDefenses, path: Path, request: DefendRequest, how: ToolboxRunOptions, device: str
) -> ToolboxResult:
    wanted = RunRequest(
        options=request.options,
        root=request.root,
        device=device,
        seed=request.seed,
        time_limit=how.time_limit,
        force=request.force,
        trust=request.trust,
        fast_cpu=how.fast_cpu,
        report=(lambda line: None) if how.quiet else say,
    )
    return adapter.run_defense(path, request.method, wanted)


@contextlib.contextmanager
def _failure_stored(request: DefendRequest, record: Record, file: Path, device: str) -> Iterator[None]:
    """A run of the toolbox's script inside the block leaves ``file`` if it fails, and removes it if it ends well."""
    start = time.perf_counter()
    try:
        yield
    except ToolboxError as error:
        seconds = time.perf_counter() - start
        before = evaluate(record.model, record, device=device)
        save_outcome(_failed(request, record, before, str(error), device=device, seconds=seconds), file)
        raise
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder is missing, or logs of other runs are in it
        file.parent.rmdir()


def _failed(
    request: DefendRequest, record: Record, before: Metrics, error: str, *, device: str, seconds: float
) -> Outcome:
    return Outcome(
        method=request.method, implementation=record.provenance.toolbox, options=dict(request.options),
        command=command_line(), seed=request.seed, device=device, seconds=seconds, budget="unknown",
        status="failed", error=error, provenance=record.provenance.to_json(),
        before=StoredMetrics.model_validate(before.to_json()),
    )  # fmt: skip


def _outcome(
    request: DefendRequest, result: ToolboxResult, record: Record, before: Metrics, after: Metrics, *, device: str
) -> Outcome:
    provenance = {**record.provenance.to_json(), "toolbox_commit": result.commit or record.provenance.toolbox_commit}
    log: dict[str, Any] = {"oracle": result.oracle} if result.oracle else {}
    if result.log is not None:
        log["toolbox_log"] = str(result.log)
    return Outcome(
        method=request.method,
        implementation=record.provenance.toolbox,
        options=dict(result.options),
        command=command_line(),
        seed=request.seed,
        device=device,
        seconds=result.seconds,
        budget=result.budget,
        protocol="oracle" if result.oracle else "defender",
        provenance=provenance,
        before=StoredMetrics.model_validate(before.to_json()),
        after=StoredMetrics.model_validate(after.to_json()),
        reported=dict(result.reported),
        der=defense_effectiveness(before, after),
        log=log,
    )


def _json(outcome: Outcome, result: ToolboxResult, before: Metrics, after: Metrics) -> dict[str, Any]:
    return {
        "method": outcome.method,
        "implementation": outcome.implementation,
        "options": outcome.options,
        "before": before.to_json(),
        "after": after.to_json(),
        "reported": outcome.reported,
        "der": outcome.der,
        "seconds": outcome.seconds,
        "budget": outcome.budget,
        "protocol": outcome.protocol,
        "folder": str(result.folder),
        "outcome": str(result.folder / OUTCOME),
    }


def _show(outcome: Outcome, record: Record, result: ToolboxResult, before: Metrics, after: Metrics) -> None:
    whose = f"{outcome.implementation}'s {outcome.method}"
    show_metrics(
        f"{record.provenance.attack} on {record.provenance.dataset}, {record.provenance.architecture}",
        {"before": before, f"after {whose}": after},
    )
    say(f"{_agreement(outcome)}; DER {outcome.der:.3f}, {outcome.seconds:.0f} s, saw: {outcome.budget}")
    if result.oracle:
        say(f"oracle: {result.oracle}")
    say(f"wrote {OUTCOME} beside the toolbox's own files in {result.folder}")


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
