"""Time of a grid against the same cells as separate ``bench defend`` calls, in the same run.

    python benchmarks/grid.py runs/a runs/b ... [--workers 2] [--device cpu]

Six cheap methods on each record given: CLP at three values of u, BNP at two, EP. The separate calls run two at a time, so that
both ways have the same processor cores, and each computes in one thread, as a worker of the grid does. Each writes where
``--out`` says, and nothing stays. The processor's time is that of all processes of a way; it says more than the clock where
others use the machine too. On Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

METHODS: dict[str, tuple[str, Sequence[str]]] = {
    "clp": ("clp", ()),
    "clp:u=2": ("clp", ("--u", "2")),
    "clp:u=4": ("clp", ("--u", "4")),
    "bnp": ("bnp", ()),
    "bnp:u=2": ("bnp", ("--option", "u=2")),
    "ep": ("ep", ()),
}
_APART = ("command", "created", "seconds", "weights")  # what an outcome says of its run, not of the method
_SET_CHILD_SUBREAPER = 36  # of prctl(2)
Found = dict[str, object]


def main() -> None:
    """Run both ways, compare what they found, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        grid, together = timed(lambda: run_grid(given.records, Path(folder, "grid"), given.workers, given.device))
        separate, apart = timed(
            lambda: run_separately(given.records, Path(folder, "separate"), given.workers, given.device)
        )
    print(f"{len(grid)} cells, {given.workers} at a time; load now {os.getloadavg()[0]:.1f}")
    for name, one, other in zip(("clock", "processor"), together, apart, strict=True):
        print(
            f"{name}: bench leaderboard run {one:.1f} s, separate bench defend calls {other:.1f} s: {other / one:.1f}x"
        )
    if grid != separate:
        sys.exit(f"the two ways do not agree on {[cell for cell in grid if grid[cell] != separate.get(cell)]}")
    print("the same outcomes both ways, but for times")


def adopt_orphans() -> None:
    """Processes whose parent ends before them become children of this one, so that their time is known."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def timed(work: Callable[[], Found]) -> tuple[Found, tuple[float, float]]:
    """What it returns, and its seconds by the clock and on the processor; it has to start all that computes."""
    start, before = time.perf_counter(), os.times()
    found = work()
    clock = time.perf_counter() - start
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return found, (clock, spent)


def run_grid(records: Sequence[Path], out: Path, workers: int, device: str) -> Found:
    """The outcome of each cell, by one command."""
    given = [word for record in records for word in ("--record", str(record))]
    given += [word for method in METHODS for word in ("--method", method)]
    _bench("leaderboard", "run", *given, "--out", str(out), "--workers", str(workers), "--device", device)
    return dict(map(_result, sorted((out / "cells").iterdir())))


def run_separately(records: Sequence[Path], out: Path, workers: int, device: str) -> Found:
    """The outcome of each cell, by a command a cell."""

    def defend(cell: tuple[int, tuple[Path, str]]) -> Path:
        number, (record, name) = cell
        method, options = METHODS[name]
        place = out / str(number)
        _bench("defend", "--record", str(record), "--method", method, *options, "--out", str(place), "--device", device)
        return place / "outcome.json"

    with ThreadPoolExecutor(workers) as pool:
        return dict(map(_result, pool.map(defend, enumerate(itertools.product(records, METHODS)))))


def _bench(*words: str) -> None:
    command = [sys.executable, "-m", "clp_plugin", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _result(file: Path) -> tuple[str, object]:
    found = json.loads(file.read_text())
    cell = json.dumps([found["provenance"]["path"], found["method"], found["options"]], sort_keys=True)
    log = {name: value for name, value in found["log"].items() if not name.startswith("seconds")}
    return cell, {**{name: value for name, value in found.items() if name not in _APART}, "log": log}


if __name__ == "__main__":
    main()
