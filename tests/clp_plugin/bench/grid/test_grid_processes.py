"""A grid in processes of its own: the same outcomes as in this one, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import bench
from grids import outcomes, own_defense, run, tiny_record
from processes import PATIENCE, gone

from clp_plugin.bench.grid.local import cores
from clp_plugin.store.outcomes import Outcome

pytestmark = pytest.mark.slow  # a worker imports torch


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for seed in (1, 2):
        tiny_record(folder / f"badnets-{seed}", seed=seed)
    return folder


def what_counts(out: Path) -> list[object]:
    """The outcomes but for times."""

    def timeless(outcome: Outcome) -> object:
        return outcome.model_dump(exclude={"seconds": True, "created": True, "command": True, "log": {"seconds_score"}})

    return [timeless(outcome) for outcome in outcomes(out)]


def grid(out: Path, records: Path, *more: object) -> list[str]:
    given = (
        "--record",
        f"{records}/*",
        "--method",
        "clp",
        "--method",
        "bnp",
        "--seeds",
        "0,1",
        "--device",
        "cpu",
        *more,
    )
    return ["leaderboard", "run", "--out", str(out), *map(str, given)]


@pytest.fixture(scope="module")
def undisturbed(records: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What this process alone makes of the grid."""
    out = tmp_path_factory.mktemp("alone")
    assert bench(*grid(out, records, "--workers", "0")).code == 0
    found = what_counts(out)
    assert len(found) == 8
    return found


def test_processes_make_what_one_makes(records: Path, undisturbed: list[object], tmp_path: Path) -> None:
    assert bench(*grid(tmp_path, records, "--workers", min(2, cores()))).code == 0
    assert what_counts(tmp_path) == undisturbed


def test_two_shards_at_once_make_what_one_makes(records: Path, undisturbed: list[object], tmp_path: Path) -> None:
    shards = [
        subprocess.Popen(
            [sys.executable, "-m", "clp_plugin", *grid(tmp_path, records, "--workers", 0, "--shard", f"{i}/2")]
        )
        for i in (1, 2)
    ]
    assert [each.wait() for each in shards] == [0, 0]
    assert what_counts(tmp_path) == undisturbed


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_a_ray_cluster_makes_what_one_process_makes(records: Path, undisturbed: list[object], tmp_path: Path) -> None:
    assert bench(*grid(tmp_path, records, "--executor", "ray", "--workers", min(2, cores()))).code == 0
    assert what_counts(tmp_path) == undisturbed


def test_a_cell_that_kills_its_worker_is_a_failure_and_the_rest_of_the_record_is_run(
    records: Path, tmp_path: Path
) -> None:
    mine = own_defense(tmp_path / "own", "os.kill(os.getpid(), signal.SIGKILL)")
    found = bench(
        "leaderboard", "run", "--out", tmp_path / "out", "--record", records / "badnets-1", "--method", "bnp", *mine,
        "--method", "clp", "--device", "cpu", "--workers", 1, "--json",
    )  # fmt: skip
    assert found.code == 3
    counted = json.loads(found.out.splitlines()[-1])
    assert {name: counted[name] for name in ("cells", "ran", "kept", "failed")} == {
        "cells": 3, "ran": 3, "kept": 0, "failed": 1,  # the worker that follows a dead one meets bnp again
    }  # fmt: skip
    by_method = {outcome.method: outcome for outcome in outcomes(tmp_path / "out")}
    assert by_method["clp"].status == "ok"
    assert by_method["mine"].error == "its worker died 2 times, killed by signal 9 (SIGKILL); is there enough memory?"
    assert by_method["mine"].provenance["sha256"] == by_method["clp"].provenance["sha256"]


def test_workers_end_with_a_driver_that_was_killed_and_the_next_one_goes_on(
    records: Path, undisturbed: list[object], tmp_path: Path
) -> None:
    told, out = tmp_path / "pid", tmp_path / "out"
    mine = own_defense(
        tmp_path / "own", f"Path({str(told)!r}).write_text(str(os.getpid()))\n        time.sleep(600)"
    )  # fmt: skip
    first = ("--record", f"{records}/*", "--method", "clp", "--method", "bnp", "--seeds", "0,1")
    command = ["leaderboard", "run", "--out", out, *first, *mine, "--device", "cpu", "--workers", 1]
    driver = subprocess.Popen([sys.executable, "-m", "clp_plugin", *map(str, command)])
    until = time.monotonic() + 6 * PATIENCE
    while not (told.is_file() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    worker = int(told.read_text())
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert gone(worker)
    stored = what_counts(out)
    assert 0 < len(stored) < 8
    assert run(out, *first).code == 0
    assert what_counts(out) == undisturbed
    assert list(out.rglob(".*")) == []


def test_a_grid_that_is_stopped_stops_its_workers(records: Path, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    mine = own_defense(tmp_path / "own", f"Path({str(told)!r}).write_text(str(os.getpid()))\n        time.sleep(600)")
    command = [
        "leaderboard",
        "run",
        "--out",
        tmp_path / "out",
        "--record",
        records / "badnets-1",
        *mine,
        "--workers",
        1,
    ]
    driver = subprocess.Popen(
        [sys.executable, "-m", "clp_plugin", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 6 * PATIENCE
    while not (told.is_file() and told.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGTERM)
    assert driver.wait(timeout=2 * PATIENCE) == 130
    assert gone(int(told.read_text()))
