"""A toolbox's own defense on one of its records, in its own process, judged and stored as ours are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from clp_plugin.bench.run import DefenseRun, judged
from clp_plugin.defenses.base import Repaired
from clp_plugin.errors import ToolboxError
from clp_plugin.evaluation.judging import RecordJudge
from clp_plugin.files.atomic import delete
from clp_plugin.files.locks import claimed
from clp_plugin.records.adapter import RunsDefenses
from clp_plugin.records.exchange import RunRequest, ToolboxResult
from clp_plugin.store.layout import DEFENSES, TOOLBOX_OUTCOME, failure_file
from clp_plugin.store.outcomes import RunFacts, save_outcome
from clp_plugin.types import Record


def run_toolbox_defense(
    adapter: RunsDefenses,
    record: Record,
    *,
    method: str,
    request: RunRequest,
    reuse: bool = False,
    command: str = "",
    judge: RecordJudge | None = None,
) -> tuple[ToolboxResult, DefenseRun]:
    """Run a toolbox's defense, or read back an earlier result, measure it, and store the outcome beside its files.

    A run that fails is stored as failed, beside what it printed, until one of that method ends well. Where the request has a
    destination of its own no outcome is stored: whoever chose it keeps the books.

    Args:
        adapter: The adapter of the toolbox whose record it is.
        record: One of its records, as it was opened.
        method: Name of the defense in the toolbox.
        request: How its script is to run.
        reuse: Measure the result that is there instead of running.
        command: The command line, for the outcome.
        judge: The judge of the record, if it has judged already; on the device of the request.

    Raises:
        ToolboxError: If the script fails, or leaves nothing that can be used.
        RecordError: If there is no earlier result to be read.
    """
    facts = RunFacts(
        method, request.options, request.seed, request.device, command, record.provenance,
        implementation=record.provenance.toolbox, budget="unknown", target=str(record.target),
    )  # fmt: skip
    judge = judge or RecordJudge(record, device=request.device)
    place = request.destination or record.folder / DEFENSES / method
    with claimed(place, wait=False):  # until the outcome lies beside the result
        if reuse:
            result = adapter.read_defense(record.folder, method)
        else:
            with contextlib.nullcontext() if request.destination else _failure_stored(record, facts, judge):
                result = adapter.run_defense(record.folder, method, request)
        run = judged(
            record,
            Repaired(result.model, log=_log(result)),
            _as_it_ran(facts, result),
            seconds=result.seconds,
            judge=judge,
            reported=result.reported,
        )
        if request.destination is None:
            save_outcome(run.outcome, result.folder / TOOLBOX_OUTCOME)
    return result, run


def _as_it_ran(facts: RunFacts, result: ToolboxResult) -> RunFacts:
    commit = result.commit or facts.provenance.toolbox_commit
    return replace(
        facts,
        options=result.options,
        budget=result.budget,
        protocol="oracle" if result.oracle else "defender",
        provenance=replace(facts.provenance, toolbox_commit=commit),
    )


def _log(result: ToolboxResult) -> dict[str, Any]:
    log = {"oracle": result.oracle} if result.oracle else {}
    return log if result.log is None else {**log, "toolbox_log": str(result.log)}


@contextlib.contextmanager
def _failure_stored(record: Record, facts: RunFacts, judge: RecordJudge) -> Iterator[None]:
    """A script that fails inside the block leaves a failed outcome; one that ends well removes an earlier one."""
    file = failure_file(record.folder, facts.method)
    start = time.perf_counter()
    try:
        yield
    except ToolboxError as error:
        seconds = time.perf_counter() - start
        failed = facts.outcome(seconds=seconds, before=judge.before().metrics, error=str(error))
        save_outcome(failed, file)
        raise
    delete(file)
    with contextlib.suppress(OSError):  # the folder is missing, or logs of other runs are in it
        file.parent.rmdir()
