"""Run a grid in this process, record after record: for debuggers and small machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clp_plugin.bench.grid.events import Told
from clp_plugin.bench.grid.plan import GridSettings, Task
from clp_plugin.bench.grid.work import work


@dataclass(frozen=True)
class ThisProcess:
    """The executor that starts no other process."""

    def run(self, tasks: Sequence[Task], settings: GridSettings, told: Told) -> None:
        """Run all tasks; see :class:`clp_plugin.bench.grid.executor.Executor`."""
        for task in tasks:
            work(task, settings, told)
