"""Run a grid in worker processes on this machine, one a record; one that dies takes no other with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from clp_plugin.bench.grid.events import Closed, Event, Started, Told
from clp_plugin.bench.grid.methods import OWN
from clp_plugin.bench.grid.plan import GridSettings, Task
from clp_plugin.bench.grid.work import prepare_process, work
from clp_plugin.errors import ConfigError
from clp_plugin.registry import load_catalogue

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    _Context = ForkServerContext | SpawnContext

_MOST_DEATHS = 2  # of workers over the same cell, or while a record was being opened
_GRACE = 10.0  # seconds that a worker has to stop what it has started


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class LocalProcesses:
    """The executor that starts a process for each record, a few at a time.

    A process lives for one record, so that memory does not grow with the number of cells. If it dies, another one goes on
    with that record; a cell over which two have died is stored as failed.

    Attributes:
        workers: Number of processes at a time, at least 1.
        threads: Number of threads in each, at least 1.
    """

    workers: int
    threads: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1 or not 1 <= self.threads <= cores() or self.workers * self.threads > cores():
            raise ConfigError(
                f"--workers {self.workers} with --threads {self.threads}: expected at least 1 of each and, together, at "
                f"most the {cores()} cores that this process may use"
            )

    def run(self, tasks: Sequence[Task], settings: GridSettings, told: Told) -> None:
        """Run all tasks; see :class:`clp_plugin.bench.grid.executor.Executor`."""
        waiting = deque(_Attempt(task) for task in tasks)
        context = _context(settings.device)
        with _stopped_at_the_end() as running:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    worker = _Worker.start(waiting.popleft(), settings, self.threads, context)
                    running[worker.pipe] = worker
                ready = wait(list(running))
                for pipe, worker in [each for each in running.items() if each[0] in ready]:
                    event = worker.next_event()
                    if event is not None:
                        told(event)
                        continue
                    del running[pipe]
                    if not worker.closed:
                        follow_up = worker.attempt.after_death(worker.process.exitcode)
                        waiting.appendleft(follow_up) if isinstance(follow_up, _Attempt) else told(follow_up)


@dataclass
class _Attempt:
    """A task with what is known of earlier workers that died over it.

    Attributes:
        task: The task.
        cell: File name of the cell that was started last; empty while the record is opened.
        deaths: Cell to the number of workers that died over it.
        doomed: Cell to the reason why it is not tried again.
    """

    task: Task
    cell: str = ""
    deaths: Counter[str] = field(default_factory=Counter)
    doomed: dict[str, str] = field(default_factory=dict)

    def after_death(self, exit_code: int | None) -> _Attempt | Closed:
        """The step after the worker's death: another attempt, or the end of this record."""
        self.deaths[self.cell] += 1
        if self.deaths[self.cell] >= _MOST_DEATHS:
            reason = f"its worker died {_MOST_DEATHS} times, {_how(exit_code)}; is there enough memory?"
            if not self.cell:
                return Closed(str(self.task.record), reason)
            self.doomed[self.cell] = reason
        self.cell = ""
        return self


@dataclass
class _Worker:
    """A process and what it has told.

    Attributes:
        attempt: The attempt that it works on.
        process: The worker's process.
        pipe: The end of the pipe that its events come from.
        closed: Whether it has told that its task is done.
    """

    attempt: _Attempt
    process: BaseProcess
    pipe: Connection
    closed: bool = False

    @classmethod
    def start(cls, attempt: _Attempt, settings: GridSettings, threads: int, context: _Context) -> _Worker:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(attempt.task, settings, dict(attempt.doomed), threads, theirs))
        process.start()
        theirs.close()
        return cls(attempt, process, ours)

    def next_event(self) -> Event | None:
        """The next event that it tells; None when it has ended."""
        try:
            event: Event = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return None
        if isinstance(event, Started):
            self.attempt.cell = event.cell
        self.closed = self.closed or isinstance(event, Closed)
        return event

    def stop(self) -> None:
        """Ask it to stop, and make it."""
        self.process.terminate()
        self.process.join(_GRACE)
        self.process.kill()
        self.process.join()


def _context(device: str) -> _Context:
    """How workers start: as forks of a process that has imported all and computed nothing, where that is possible.

    Forks of this process would inherit its threads, and torch computes in none of theirs once it did so here; and whoever
    imports torch for a GPU may have asked its driver for something, which no fork may use.
    """
    if device != "cpu" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded())
    return context


def _preloaded() -> list[str]:
    """Modules that every worker would import; none of somebody else, whose import may do anything."""
    sections = load_catalogue().sections
    entries = (entry for kind in ("toolboxes", "defenses") for entry in sections[kind].values())
    own = {entry.object.partition(":")[0] for entry in entries if entry.origin == OWN}
    # torch imports its compiler when an optimizer is made.
    return ["clp_plugin.bench.grid.work", *sorted(own), "torch._dynamo"]


@contextlib.contextmanager
def _stopped_at_the_end() -> Iterator[dict[Connection, _Worker]]:
    """Workers by their pipe; those that still run when the block ends are stopped."""
    running: dict[Connection, _Worker] = {}
    try:
        yield running
    finally:
        for worker in running.values():
            worker.process.terminate()
        for worker in running.values():
            worker.stop()


def _serve(task: Task, settings: GridSettings, doomed: Mapping[str, str], threads: int, pipe: Connection) -> None:
    """Work in a worker process, and send its events through the pipe."""
    prepare_process(threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it has started is stopped, as after Ctrl-C
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    def tell(event: Event) -> None:
        try:
            pipe.send(event)
        except OSError:  # the driver is gone: that must not pass for a failure of the method that was about to report
            raise SystemExit(1) from None

    with contextlib.suppress(KeyboardInterrupt):
        work(task, settings, tell, doomed=doomed)


def _end_with_the_parent() -> None:
    """A grid whose driver was killed must not go on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"with exit status {exit_code}"
