"""Whatever ends a command, and whatever runs beside it: nothing is lost, nothing is double, nothing is left over.

All steps of all commands: ``benchmarks/kills.py``.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import bench
from interruptions import content, needs_fork
from kill_runs import COMMANDS, kill_at_each_step, prepared, several_at_a_time, tiny_attacks, tree

from clp_plugin.store.outcomes import Outcome, save_outcome

# Every so-manieth step of each command, which all together take a minute.
EVERY = {"attack": 14, "defend": 8, "sweep": 8, "scan": 12, "compare": 9, "grid": 20}


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with tiny_attacks():
        yield


def outcome(seed: int) -> Outcome:
    metrics = {"acc": 0.9, "asr": 0.1, "ra": 0.8, "base_rate": 0.1, "n_clean": 10, "n_triggered": 9}
    return Outcome(
        method="clp", command="bench defend", seed=seed, device="cpu", seconds=1, before=metrics, after=metrics, der=0.5
    )  # fmt: skip


def test_compare_shows_what_was_finished_once_and_clears_the_rest(tmp_path: Path) -> None:
    results = tmp_path / "record" / "defense" / "clp"
    for seed, folder in enumerate(("whole", ".whole.clp-new", ".never.clp-new", ".aside.clp-old", ".aside.clp-new")):
        save_outcome(outcome(seed), results / folder / "outcome.json")
    (tmp_path / "record" / "analysis" / "sweep").mkdir(parents=True)
    (tmp_path / "record" / "analysis" / "sweep" / ".sweep.png.clp-new").write_bytes(b"half")
    assert bench("compare", "--record", tmp_path / "record", "--out", tmp_path / "out").code == 0
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["3", "0"]
    assert {name for name in content(tmp_path / "record") if "/." in name} == set()
    assert sorted(path.name for path in results.iterdir()) == ["aside", "whole"]


def test_listing_records_shows_no_unfinished_one_and_clears_it(tmp_path: Path) -> None:
    (tmp_path / ".gone.clp-new").mkdir()
    for name in ("record.json", "model.safetensors"):
        (tmp_path / ".gone.clp-new" / name).write_text("{}")
    assert bench("list", "records", "--root", tmp_path, "--json").json == {"records": []}
    assert list(tmp_path.iterdir()) == []


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_killed_command_run_again_ends_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    def compare(place: Path) -> None:
        """What a reader sees between the kill and the next run: the one result, or none yet."""
        found = bench("compare", "--record", place / "record", "--out", place / "seen", "--json")
        assert found.code == 2 or len(found.json["rows"]) == 1
        shutil.rmtree(place / "seen", ignore_errors=True)

    between = {"between": compare} if name == "defend" else {}
    assert kill_at_each_step(name, tmp_path, every=EVERY[name], **between) >= 2


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "killed_at"), [("attack", None), ("defend", None), ("defend", 9), ("grid", 30), ("sweep", 6)]
)
def test_several_at_a_time_end_as_one_alone(name: str, killed_at: int | None, tmp_path: Path) -> None:
    several_at_a_time(name, tmp_path, processes=2 if name == "grid" else 3, kill_first_at=killed_at)


@pytest.mark.slow
def test_a_grid_runs_no_cell_again(tmp_path: Path) -> None:
    place = prepared("grid", tmp_path / "runs")
    COMMANDS["grid"].run(place)
    before = tree(place), {path: path.stat().st_mtime_ns for path in place.rglob("*.json")}
    assert len(before[1]) >= 2
    COMMANDS["grid"].run(place)
    assert (tree(place), {path: path.stat().st_mtime_ns for path in place.rglob("*.json")}) == before
