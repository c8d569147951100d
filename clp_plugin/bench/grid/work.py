"""All cells of one record, one after another; each is stored as soon as it ends, and no failure stops the others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from clp_plugin.bench.grid.events import Closed, Ended, Progressed, Started, Told
from clp_plugin.bench.grid.plan import AttackFirst, Cell, GridSettings, Task, cells_of
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.bench.toolbox_run import run_toolbox_defense
from clp_plugin.defenses.base import Defense
from clp_plugin.errors import ClpError
from clp_plugin.evaluation.judging import RecordJudge
from clp_plugin.networks.memory import keep_freed_memory
from clp_plugin.records.adapter import ReadsRecords, RunsAttacks, RunsDefenses, require
from clp_plugin.records.exchange import RunRequest
from clp_plugin.records.opening import BENCH, find_adapter, lending, load_adapter
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.store.again import is_due
from clp_plugin.store.content import record_content
from clp_plugin.store.outcomes import Outcome, RunFacts
from clp_plugin.types import Progress, Record

_REPORT_SECONDS = 0.2


def prepare_process(threads: int) -> None:
    """Make a process fit for work that is all that it does.

    Args:
        threads: Number of threads that torch may use, at least 1.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()


def work(task: Task, settings: GridSettings, told: Told, *, doomed: Mapping[str, str] | None = None) -> None:
    """Make the record of a task if need be, open it, and run what is due of its cells.

    Args:
        task: The record and its methods.
        settings: The settings that all cells share.
        told: Called with what happens.
        doomed: File names of cells that are not tried again but stored as failed, each with the reason.
    """
    catalogue = load_catalogue(settings.registry)
    try:
        with _record(task, settings, catalogue, told) as attacked:
            for cell in attacked.cells(task, settings, catalogue):
                if (ended := _run(cell, attacked, settings, told, doomed or {})) is not None:
                    told(ended)
    except ClpError as error:
        told(Closed(str(task.record), str(error)))
    except Exception as error:  # hours of other records must not be lost to one, whoever wrote what failed
        told(Closed(str(task.record), f"{type(error).__name__}: {error}"))
    else:
        told(Closed(str(task.record)))


class _Attacked:
    """A record that is open, with the judge of all that its cells make."""

    def __init__(self, record: Record, adapter: ReadsRecords, judge: RecordJudge) -> None:
        self.record, self.adapter, self.judge = record, adapter, judge
        self._is_judged = False

    def judge_first(self, told: Told) -> None:
        """Judge the attacked model, unless that is done."""
        if not self._is_judged:
            told(Started(str(self.record.folder), "judging the attacked model"))
            self.judge.before()
            self._is_judged = True

    def cells(self, task: Task, settings: GridSettings, catalogue: Catalogue) -> Iterator[Cell]:
        """The cells of the task; what the record is, is kept for the next time."""
        content, origin = record_content(task.record), self.record.provenance
        settings.store.remember(content, origin)
        yield from cells_of(task, content, settings, catalogue, dataset=origin.dataset, toolbox=origin.toolbox)


@contextlib.contextmanager
def _record(task: Task, settings: GridSettings, catalogue: Catalogue, told: Told) -> Iterator[_Attacked]:
    if task.attack is not None:
        told(Started(str(task.record), "attacking"))
        method, bench, request = attack_request(task.attack, settings, catalogue)
        request = replace(request, progress=_progress(str(task.record), told))
        with bench.attacked(str(task.record), method, request) as path:
            adapter = load_adapter(catalogue, BENCH)
            record = adapter.open(path)
    else:
        told(Started(str(task.record), "opening"))
        adapter = find_adapter(task.record, toolbox=task.toolbox, catalogue=catalogue)
        adapter = lending(adapter, task.record, settings.data)
        record = adapter.open(task.record, trust=settings.trust)
    yield _Attacked(record, adapter, RecordJudge(record, device=settings.device))


def attack_request(
    attack: AttackFirst, settings: GridSettings, catalogue: Catalogue
) -> tuple[str, RunsAttacks, RunRequest]:
    """The attack's name in the catalogue, what runs it, and how it is to run.

    Raises:
        ConfigError: If a setting is impossible.
    """
    method, _, target = attack.name.partition(":")
    bench = require(load_adapter(catalogue, BENCH), RunsAttacks, toolbox=BENCH)
    given = {"preset": attack.preset, **({"target": target} if target else {})}
    request = RunRequest(
        bench.attack_options(given), device=settings.device, seed=attack.seed, reuse=True, catalogue=catalogue
    )  # fmt: skip
    return method, bench, request


def _run(
    cell: Cell, attacked: _Attacked, settings: GridSettings, told: Told, doomed: Mapping[str, str]
) -> Ended | None:
    """Run a cell, or take what is there; None if it is neither there nor due."""
    store = settings.store
    earlier = store.stored(cell.key)
    if not is_due(earlier, settings.again):
        return None if earlier is None else Ended(str(cell.record), cell.label, earlier, kept=True)
    with store.claimed(cell.key):
        now = store.stored(cell.key)
        if now is not None and now != earlier:  # another process made it while this one waited
            return Ended(str(cell.record), cell.label, now, kept=True)
        doom = doomed.get(cell.key.name)
        if doom is None:  # before the cell counts as started: what fails here is not of this cell
            attacked.judge_first(told)
        told(Started(str(cell.record), cell.label, cell.key.name))
        outcome = _outcome(cell, attacked, settings, told, doom)
        store.save(cell.key, outcome)
    return Ended(str(cell.record), cell.label, outcome)


def _outcome(cell: Cell, attacked: _Attacked, settings: GridSettings, told: Told, doom: str | None) -> Outcome:
    try:
        if doom is not None:
            raise ClpError(doom)
        progress = _progress(str(cell.record), told)
        if cell.defense is None:
            return _toolbox_run(cell, attacked, settings, progress)
        return _own_run(cell, cell.defense, attacked, settings, progress)
    except Exception as error:  # hours of other cells must not be lost to one method, whoever wrote it
        facts = RunFacts(
            cell.method.name, cell.key.options, cell.key.seed, settings.device, settings.command,
            attacked.record.provenance, implementation=cell.method.implementation, protocol=cell.key.protocol,
            target=str(attacked.record.target),
        )  # fmt: skip
        return facts.outcome(error=str(error) if isinstance(error, ClpError) else f"{type(error).__name__}: {error}")


def _own_run(cell: Cell, defense: Defense, attacked: _Attacked, settings: GridSettings, progress: Progress) -> Outcome:
    planned = plan_defense(
        attacked.record, cell.method.name, defense, cell.key.options, seed=cell.key.seed, device=settings.device,
        command=settings.command, n_budget=settings.n_budget, protocol=settings.protocol,
    )  # fmt: skip
    return run_defense(planned, judge=attacked.judge, progress=progress).outcome


def _toolbox_run(cell: Cell, attacked: _Attacked, settings: GridSettings, progress: Progress) -> Outcome:
    request = RunRequest(
        options=cell.method.options,
        root=settings.root,
        device=settings.device,
        seed=cell.key.seed,
        time_limit=settings.time_limit,
        force=True,
        trust=settings.trust,
        fast_cpu=settings.fast_cpu,
        progress=progress,
        destination=settings.store.toolbox_result(cell.key),
    )
    adapter = require(attacked.adapter, RunsDefenses, toolbox=cell.method.implementation)
    _, run = run_toolbox_defense(
        adapter, attacked.record, method=cell.method.name, request=request, command=settings.command,
        judge=attacked.judge,
    )  # fmt: skip
    return run.outcome


def _progress(record: str, told: Told) -> Progress:
    """Tells how far something is, a few times a second at most."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            told(Progressed(record, done, total))

    return report
