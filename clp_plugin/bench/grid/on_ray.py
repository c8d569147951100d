"""Run a grid on a Ray cluster whose machines share the grid's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clp_plugin.bench.grid.events import Closed, Ended, Event, Started, Told
from clp_plugin.bench.grid.plan import GridSettings, Task
from clp_plugin.bench.grid.work import prepare_process, work
from clp_plugin.errors import ConfigError

_RETRIES = 2  # of a task whose worker or machine was lost


@dataclass(frozen=True)
class RayCluster:
    """The executor that hands each record to a Ray cluster; lost workers and machines are Ray's to replace.

    Attributes:
        address: Address of the cluster, such as ``"auto"``; None starts one on this machine.
        workers: Number of processor cores to start one with on this machine; None for all. Not for a cluster that is there.
        threads: Number of processor cores and threads a record.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1

    def run(self, tasks: Sequence[Task], settings: GridSettings, told: Told) -> None:
        """Run all tasks; see :class:`clp_plugin.bench.grid.executor.Executor`."""
        ray = _ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        started_here = None if self.address else (self.workers or 0) * self.threads or None
        try:
            ray.init(
                address=self.address or "local", num_cpus=started_here, include_dashboard=False, log_to_driver=False
            )
        except Exception as error:  # of a cluster that does not come up Ray raises a plain one
            why = " ".join(str(error).split())
            raise ConfigError(f"Ray does not start: {why}; is the machine overloaded, or --address wrong?") from error
        try:
            resources = {"num_cpus": self.threads, "num_gpus": int(settings.device.startswith("cuda"))}
            _require(ray.cluster_resources(), resources)
            remote = ray.remote(max_retries=_RETRIES, **resources)(_work)
            pending = {remote.remote(task, settings, self.threads): task for task in tasks}
            for task in tasks:
                told(Started(str(task.record), "on the cluster"))
            while pending:
                [ready], _ = ray.wait([*pending], num_returns=1)
                task = pending.pop(ready)
                for event in _events(ray, ready, task):
                    told(event)
        finally:
            ray.shutdown()


def _work(task: Task, settings: GridSettings, threads: int) -> list[Event]:
    """Work in a worker of the cluster; what happens on the way is told in the end."""
    prepare_process(threads)
    events: list[Event] = []
    work(task, settings, events.append)
    return [event for event in events if isinstance(event, (Ended, Closed))]


def _events(ray: Any, ready: Any, task: Task) -> list[Event]:
    try:
        events: list[Event] = ray.get(ready)
    except ray.exceptions.RayError as error:
        told = " ".join(str(error).split())
        return [Closed(str(task.record), f"Ray gave its task up: {told}")]
    return events


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--executor ray needs Ray: pip install 'clp-plugin[ray]'") from error
    return ray


def _require(there: Mapping[str, float], wanted: Mapping[str, int]) -> None:
    """Ray itself would wait for ever for what its cluster does not have."""
    for name, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if there.get(resource, 0) < wanted[name]:
            raise ConfigError(
                f"the Ray cluster has {there.get(resource, 0):g} {resource} in all, a record asks for {wanted[name]}; "
                "add machines, or give fewer --threads or another --device"
            )
