"""Time of BackdoorBench's own scripts against ours on one of its records, and whether both give the same numbers.

    python benchmarks/backdoorbench.py --root CHECKOUT --record NAME [--only sweep|tac] [--repeats 1]

`defense/clp.py` with its sweep of 21 values of u against `bench sweep --parity`; `analysis/visual_tac.py` against
`bench correlate --tac-norm l1`. Each is one process from start to end, on the CPU, in alternation; CPU seconds count its data
loaders too, and depend less than the wall clock on what else the machine does. The toolbox's scripts run unmodified, with their
own settings, in a temporary copy of the checkout's surroundings: neither it nor the record changes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clp_plugin.adapters.backdoorbench.attack_result import AttackResult, read_attack_result
from clp_plugin.adapters.backdoorbench.datasets import find_data_root
from clp_plugin.adapters.backdoorbench.export import COLUMNS
from clp_plugin.adapters.backdoorbench.surroundings import add_data, add_record, backdoorbench_workspace
from clp_plugin.adapters.backdoorbench.toolbox_facts import BACKDOORBENCH, LAUNCHER
from clp_plugin.adapters.driving.checkout import find_checkout
from clp_plugin.adapters.driving.process import Script, run_script

VALUES = "0:10:0.5"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Timed:
    """Wall-clock and CPU seconds of one process from start to end, and what it measured."""

    wall: float
    cpu: float
    table: pd.DataFrame


class Clock:
    """Runs from its making."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), self._of_children()

    def seconds(self) -> tuple[float, float]:
        """Wall clock, and CPU of the child processes that have ended since."""
        return time.perf_counter() - self._wall, self._of_children() - self._cpu

    def _of_children(self) -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Setting:
    """What both sides get."""

    root: Path
    record: Path
    result: AttackResult
    clean: int
    triggered: int


@contextmanager
def surroundings(setting: Setting) -> Iterator[tuple[Path, Path, str]]:
    """A temporary workspace for the toolbox, a log beside it, and the record's name there."""
    with backdoorbench_workspace(setting.root) as place, tempfile.TemporaryDirectory() as logs:
        add_data(place, setting.result.data_path, find_data_root(setting.result, checkout=setting.root))
        name = add_record(place, setting.result)
        (place / "record" / name / "visual").unlink(missing_ok=True)  # a link into the record: the script writes there
        yield place, Path(logs) / "log", name


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Child processes find the modules in ``folder``."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ |= {"PYTHONPATH": before} if before else {}


def toolbox_sweep(setting: Setting) -> Timed:
    """The toolbox's CLP: one pruned model, and 21 more for its curve."""
    dataset, model = setting.result.dataset, setting.result.model_name
    with surroundings(setting) as (place, log, name):
        given = ["--yaml_path", f"./config/defense/clp/{dataset}.yaml", "--dataset", dataset, "--model", model]
        script = Script("defense/clp.py", ["--result_file", name, *given, "--device", "cpu"], LAUNCHER)
        clock = Clock()
        run_script(script, place, log, report=str)
        return Timed(*clock.seconds(), pd.read_csv(place / "record" / name / "defense" / "clp" / "u_step_df.csv"))


def our_sweep(setting: Setting) -> Timed:
    """All that `bench sweep` does."""
    seconds, found = ours(setting, "sweep", "--parity", "--u", VALUES)
    return Timed(*seconds, pd.DataFrame(found["rows"]))


def toolbox_tac(setting: Setting) -> Timed:
    """The toolbox's TAC of the outputs of all convolutions, norms and linear layers."""
    dataset, model = setting.result.dataset, setting.result.model_name
    with surroundings(setting) as (place, log, name):
        given = ["--visual_dataset", "bd_test", "--dataset", dataset, "--model", model, "--device", "cpu"]
        script = Script("analysis/visual_tac.py", ["--result_file_attack", name, *given], LAUNCHER)
        with importable(place / "analysis"):  # the script imports its neighbours by their bare names
            clock = Clock()
            run_script(script, place, log, report=str)
        return Timed(*clock.seconds(), pd.read_csv(place / "record" / name / "visual" / "tac_bd_test.csv"))


def our_tac(setting: Setting) -> Timed:
    """All that `bench correlate` does, TAC and correlation."""
    with tempfile.TemporaryDirectory() as out:
        seconds, _ = ours(setting, "correlate", "--tac-norm", "l1", out=Path(out))
        return Timed(*seconds, pd.read_csv(Path(out) / "tac.csv"))


def ours(
    setting: Setting, command: str, *options: str, out: Path | None = None
) -> tuple[tuple[float, float], dict[str, list[dict[str, float]]]]:
    """Seconds of one of our commands in a process of its own, and its JSON."""
    with tempfile.TemporaryDirectory() as spare:
        given = ["--record", str(setting.record), "--toolbox", "backdoorbench", "--root", str(setting.root)]
        given += ["--device", "cpu", "--json", "--out", str(out or spare)]
        clock = Clock()
        done = subprocess.run(
            [sys.executable, "-m", "clp_plugin", command, *given, *options], capture_output=True, text=True, check=False
        )
        seconds = clock.seconds()
    if done.returncode:
        raise SystemExit(f"bench {command} failed: {done.stderr}")
    return seconds, json.loads(done.stdout)


def compare_sweeps(theirs: Timed, our: Timed, setting: Setting) -> str:
    """Fractions to the last image, losses up to rounding."""
    if len(theirs.table) != len(our.table) or not np.allclose(theirs.table["u"], our.table["u"]):
        return "NOT the same values of u"
    images = {"acc": setting.clean, "asr": setting.triggered, "ra": setting.triggered}
    off = {
        key: int(np.abs((theirs.table[COLUMNS[key]] - our.table[key]) * count).round().max())
        for key, count in images.items()
    }
    far = max(
        float(np.max(np.abs(theirs.table[COLUMNS[key]] / our.table[key] - 1)))
        for key in ("clean_loss", "triggered_loss")
    )
    same = not any(off.values()) and far <= TOLERANCE
    images_off = ", ".join(f"{key.upper()} {count}" for key, count in off.items())
    return f"{'same' if same else 'NOT the same'}: {len(our.table)} rows, images off: {images_off}; losses within {far:.0e}"


def compare_tac(theirs: Timed, our: Timed, setting: Setting) -> str:
    """BatchNorms, whose output both measure; other layers apart: the toolbox's hooks see what is later changed in place."""
    mine = {str(name): part["tac"].to_numpy() for name, part in our.table.groupby("layer")}
    yours = {str(name): part["TAC"].to_numpy() for name, part in theirs.table.groupby("layer")}
    shared = [name for name in mine if name in yours and len(mine[name]) == len(yours[name])]
    far = {name: float(np.abs(mine[name] - yours[name]).max() / yours[name].max()) for name in shared}
    norms = [name for name in shared if f"{name}.running_var" in setting.result.state_dict]
    off = [f"{name} ({value:.0e})" for name, value in far.items() if value > TOLERANCE]
    wrong = any(far[name] > TOLERANCE for name in norms)
    worst = max((far[name] for name in norms), default=0.0)
    said = f"{'NOT the same' if wrong else 'same'}: {len(norms)} BatchNorms within {worst:.0e}"
    return said + (f"; {len(off)} of {len(shared)} layers differ: {', '.join(off)}" if off else "")


CASES: dict[
    str, tuple[str, Callable[[Setting], Timed], Callable[[Setting], Timed], Callable[[Timed, Timed, Setting], str]]
] = {
    "sweep": ("21 values of u", toolbox_sweep, our_sweep, compare_sweeps),
    "tac": ("TAC of all layers", toolbox_tac, our_tac, compare_tac),
}


def setting_of(root: Path, name: str) -> Setting:
    """Read the record once for its sizes."""
    from clp_plugin.adapters.backdoorbench.record import BackdoorBenchAdapter

    root = find_checkout(BACKDOORBENCH, root).root
    path = next((p for p in (Path(name), root / "record" / name) if p.is_dir()), root / "record" / name)
    os.environ["BACKDOORBENCH_ROOT"] = str(root)
    record = BackdoorBenchAdapter().open(path)
    return Setting(
        root, path.absolute(), read_attack_result(path), len(record.clean), len(record.triggered.images)
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the BackdoorBench checkout")
    parser.add_argument("--record", required=True, help="a folder, or a name in the checkout's record/")
    parser.add_argument("--only", choices=sorted(CASES))
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    setting = setting_of(options.root, options.record)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {setting.result.model_name}, {setting.clean} clean "
        f"and {setting.triggered} triggered test images\n"
    )
    print("| what | toolbox, s | ours, s | ratio | toolbox, CPU, s | ours, CPU, s | ratio | numbers |")
    print("|---|---|---|---|---|---|---|---|")
    for key in [options.only] if options.only else CASES:
        what, theirs, our, compare = CASES[key]
        for _ in range(options.repeats):
            slow, fast = theirs(setting), our(setting)
            print(
                f"| {what} | {slow.wall:.1f} | {fast.wall:.1f} | **{slow.wall / fast.wall:.1f}x** "
                f"| {slow.cpu:.1f} | {fast.cpu:.1f} | **{slow.cpu / fast.cpu:.1f}x** | {compare(slow, fast, setting)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
