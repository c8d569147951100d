"""The interface of a place where a grid can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clp_plugin.bench.grid.events import Told
from clp_plugin.bench.grid.plan import GridSettings, Task


class Executor(Protocol):
    """Runs the tasks of a grid; all results are files, so that it may be killed at any moment and started again."""

    def run(self, tasks: Sequence[Task], settings: GridSettings, told: Told) -> None:
        """Run all tasks, each as :func:`clp_plugin.bench.grid.work.work` does it.

        Args:
            tasks: One a record.
            settings: The settings that all cells share.
            told: Called, in the calling thread, with what happens; every task ends with a ``Closed``.

        Raises:
            ConfigError: If the executor cannot start here.
        """
        ...
