"""Kills every command before each of its write steps, runs it again, and compares all files with an undisturbed run's.

    python benchmarks/kills.py [COMMAND ...]

A difference, or anything that is left over, ends the script with what it is. Needs the checkout: the commands are those of
the tests, on images and networks as small as possible.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from kill_runs import COMMANDS, kill_at_each_step, several_at_a_time, tiny_attacks  # noqa: E402

KILLED_AT = {"attack": (5, 15), "defend": (3, 9), "sweep": (2, 6), "compare": (4, 9), "grid": (10, 40)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    names = parser.parse_args().commands
    print("| command | killed, once before each write step | three at a time, one of them killed | seconds |")
    print("| --- | --: | --: | --: |")
    for name in names:
        start, rounds = time.perf_counter(), KILLED_AT.get(name, ())
        with tempfile.TemporaryDirectory() as folder, tiny_attacks():
            killed = kill_at_each_step(name, Path(folder, "alone"))
            for at in rounds:
                several_at_a_time(name, Path(folder, f"beside-{at}"), kill_first_at=at)
        print(f"| `{name}` | {killed} | {len(rounds)} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
