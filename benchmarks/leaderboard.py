"""Time and memory of ``bench leaderboard show`` and ``page`` on many outcomes, against reading the same files as plain JSON.

    python benchmarks/leaderboard.py [--outcomes 5000] [--repeats 3]

The baseline is a process that walks the same folder with ``os.walk`` and ``json.load``, in the same run: what is above it is
paid for checking, ranking and drawing. Where there are playwright and a chromium, a click that sorts the page's runs is
timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("clp", "ft", "fp", "nad", "anp", "rnp", "bnp", "ep", "dhbe", "clp (oracle)")
ATTACKS = ("badnets", "blended", "trojan", "sig", "wanet", "iab", "ssba", "cla", "badnet_all", "clean")
SEEDS = 10
LAYERS = {
    f"layer{stage}.{block}.bn{norm}": 64 << (stage - 1) for stage in (1, 2, 3, 4) for block in (0, 1) for norm in (1, 2)
}
PLAIN = """
import json, os, sys
for root, _, files in os.walk(sys.argv[1]):
    for name in files:
        if name.endswith(".json"):
            with open(os.path.join(root, name), encoding="utf-8") as file:
                json.load(file)
"""
SORT = """async (heading) => {
    const button = [...document.querySelectorAll("#cells th button")].find((each) => each.textContent.startsWith(heading));
    const start = performance.now();
    button.click();
    document.querySelector("#cells").getBoundingClientRect();
    return performance.now() - start;
}"""


def outcome(record: int, method: str, seed: int, draw: random.Random) -> dict[str, object]:
    """A cell of about the size of a real one: a mask of sixteen layers, options, a log and versions."""
    attack = ATTACKS[record % len(ATTACKS)]
    counts = {"n_clean": 10_000, "n_triggered": 9_000, "base_rate": 0.01}
    name, _, oracle = method.partition(" ")
    acc, asr = draw.uniform(0.6, 0.95), draw.random()
    before = {"acc": 0.95, "asr": 0.02 if attack == "clean" else 0.99, "ra": 0.01, **counts}
    return {
        "method": name, "implementation": "clp_plugin",
        "options": {"u": 3.0, "score": "paper", "layers": ["fused", "diagonal"]},
        "command": "bench leaderboard run --record 'runs/*' --method clp --out runs/board", "seed": seed, "device": "cpu",
        "seconds": draw.uniform(0.1, 60), "budget": "none", "protocol": "oracle" if oracle else "defender", "status": "ok",
        "error": None,
        "provenance": {
            "toolbox": "builtin", "path": f"runs/{attack}-seed{record}", "sha256": f"{record:064x}", "attack": attack,
            "dataset": "cifar10", "architecture": "resnet18", "architecture_options": {"width": 64}, "poison_rate": 0.1,
            "seed": record, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616], "toolbox_commit": "",
        },
        "before": before, "after": {"acc": acc, "asr": asr, "ra": 1 - asr, **counts}, "reported": None,
        "der": (max(0.0, float(before["asr"]) - asr) - (0.95 - acc) + 1) / 2,
        "mask": {
            layer: {"channels": channels, "pruned": sorted(draw.sample(range(channels), channels // 16))}
            for layer, channels in LAYERS.items()
        },
        "weights": "weights.safetensors", "log": {"thresholds": {layer: draw.random() for layer in LAYERS}},
        "versions": {"python": "3.11.9", "platform": platform.platform(), "torch": "2.14.0", "numpy": "2.3.1"},
        "created": "2026-01-01T00:00:00+00:00", "schema_version": 1,
    }  # fmt: skip


def fill(folder: Path, count: int) -> None:
    """Records times methods times seeds, one file a cell, as ``bench leaderboard run`` leaves them."""
    draw = random.Random(0)
    (folder / "cells").mkdir()
    for cell in range(count):
        record, rest = divmod(cell, len(METHODS) * SEEDS)
        content = outcome(record, METHODS[rest % len(METHODS)], rest // len(METHODS), draw)
        (folder / "cells" / f"{cell:064x}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


class Run(NamedTuple):
    """A process that ended well: seconds by the clock and on the processor, and its peak resident memory in MB."""

    seconds: float
    cpu: float
    memory: float


def child(command: Sequence[str]) -> Run:
    """Run a process that must end well."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    assert process.stderr is not None
    if status:
        raise SystemExit(f"{' '.join(command)}: {process.stderr.read().decode()}")
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def sorting(page: Path) -> list[float]:
    """Milliseconds of a click on a heading and of the layout after it, for headings of words and of numbers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        opened = browser.new_page()
        opened.goto(page.as_uri())
        return [opened.evaluate(SORT, heading) for heading in ("method", "after ASR", "record", "DER", "seconds")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outcomes", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, page = Path(place, "board"), Path(place, "report.html")
        folder.mkdir()
        fill(folder, options.outcomes)
        bench = (sys.executable, "-m", "clp_plugin", "leaderboard")
        commands = {
            "json.load": (sys.executable, "-c", PLAIN, str(folder)),
            "show": (*bench, "show", str(folder)),
            "show --json": (*bench, "show", str(folder), "--json"),
            "page": (*bench, "page", str(folder), "--out", str(page)),
        }
        runs = {name: [child(command) for _ in range(options.repeats)] for name, command in commands.items()}
        plain = min(run.cpu for run in runs["json.load"])
        megabytes = sum(file.stat().st_size for file in folder.rglob("*.json")) / 1e6
        print(f"{options.outcomes} outcomes, {megabytes:.1f} MB; {options.repeats} runs of each\n")
        print("| command | best, s | median, s | best on the CPU, s | of that, times json.load | peak memory, MB |")
        print("|---|--:|--:|--:|--:|--:|")
        for name, found in runs.items():
            seconds, cpu = [run.seconds for run in found], min(run.cpu for run in found)
            cells = (min(seconds), statistics.median(seconds), cpu, cpu / plain)
            print(
                f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {max(run.memory for run in found):.0f} |"
            )
        print(f"\npage: {page.stat().st_size / 1e6:.2f} MB")
        try:
            clicks = sorting(page)
        except ImportError as error:
            print(f"no browser: {error}")
        else:
            print(f"sorting all runs in Chromium: {', '.join(f'{each:.0f}' for each in clicks)} ms")


if __name__ == "__main__":
    main()
