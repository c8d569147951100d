"""Time of a grid against the same cells as separate ``bench defend`` calls, in the same run.

    python benchmarks/grid.py runs/a runs/b ... [--workers 2] [--device cpu]

Six cheap methods on each record given: CLP at three values of u, BNP at two, EP. The separate calls run two at a time, so that
both ways have the same processor cores; each writes where ``--out`` says, and nothing stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
BENCH = [sys.executable, "-m", "clp_plugin"]


def main() -> None:
    """Run both ways, compare what they found, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        grid = run_grid(given.records, Path(folder, "grid"), given.workers, given.device)
        together = time.perf_counter() - start
        start = time.perf_counter()
        separate = run_separately(given.records, Path(folder, "separate"), given.workers, given.device)
        apart = time.perf_counter() - start
    print(f"{len(grid)} cells, {given.workers} at a time")
    print(f"bench leaderboard run {together:.1f} s, separate bench defend calls {apart:.1f} s: {apart / together:.1f}x")
    if grid != separate:
        sys.exit(f"the two ways do not agree: {sorted(grid.items() ^ separate.items())}")
    print("same ACC and ASR both ways")


def run_grid(records: Sequence[Path], out: Path, workers: int, device: str) -> dict[str, str]:
    """Cell to ACC and ASR, by one command."""
    given = [word for record in records for word in ("--record", str(record))]
    given += [word for method in METHODS for word in ("--method", method)]
    subprocess.run(
        [*BENCH, "leaderboard", "run", *given, "--out", str(out), "--workers", str(workers), "--device", device],
        check=True, capture_output=True,
    )  # fmt: skip
    return dict(map(_result, sorted((out / "cells").iterdir())))


def run_separately(records: Sequence[Path], out: Path, workers: int, device: str) -> dict[str, str]:
    """Cell to ACC and ASR, by a command a cell."""

    def defend(cell: tuple[int, tuple[Path, str]]) -> Path:
        number, (record, name) = cell
        method, options = METHODS[name]
        place = out / str(number)
        subprocess.run(
            [*BENCH, "defend", "--record", str(record), "--method", method, *options, "--out", str(place), "--device", device],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return place / "outcome.json"

    with ThreadPoolExecutor(workers) as pool:
        return dict(map(_result, pool.map(defend, enumerate(itertools.product(records, METHODS)))))


def _result(file: Path) -> tuple[str, str]:
    found = json.loads(file.read_text())
    cell = json.dumps([found["provenance"]["sha256"], found["method"], found["options"]], sort_keys=True)
    return cell, f"{found['after']['acc']:.4f} {found['after']['asr']:.4f}"


if __name__ == "__main__":
    main()
