"""bench leaderboard run: a cell is run once and kept, one that fails stops no other, and a mistake is told first."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_records  # noqa: F401 - one thread
import pytest
from command_line import bench, refused
from counting import calls_counted
from grids import TINY, outcomes, own_defense, run, tiny_record, written

import clp_plugin.bench.grid.work  # noqa: F401 - counted below
from clp_plugin.adapters.builtin import toolbox
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.settings import PRESETS
from clp_plugin.bench.grid.events import Closed, Ended, Progressed, Started
from clp_plugin.cli.commands.grid_display import _Bars
from clp_plugin.cli.commands.leaderboard_run import parse_seeds
from clp_plugin.errors import ConfigError
from clp_plugin.evaluation.metrics import judge
from clp_plugin.store.content import record_content
from clp_plugin.store.outcomes import Outcome

TWO_BY_TWO = ("--method", "clp", "--method", "clp:u=1", "--seeds", "0,1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two records, and one that is none."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (1, 2):
        tiny_record(folder / f"badnets-{seed}", seed=seed)
    (folder / "notes").mkdir()
    return folder


@pytest.fixture
def records(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "records"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset, made tiny."""
    monkeypatch.setattr(toolbox, "PRESETS", {**PRESETS, "small": TINY})


def test_outcomes_name_their_record_by_its_full_path(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(records)
    run(tmp_path / "out", "--record", "badnets-1", "--method", "clp")
    assert [found.provenance["path"] for found in outcomes(tmp_path / "out")] == [str(records / "badnets-1")]


def test_records_times_methods_times_seeds_are_run_once(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(out, "--record", f"{records}/*", *TWO_BY_TWO, "--json")
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [(line["method"], line["seed"]) for line in lines[:-1]] == [
        ("clp", 0),
        ("clp", 1),
        ("clp", 0),
        ("clp", 1),
    ] * 2
    assert lines[-1] == {
        "cells": 8, "ran": 8, "kept": 0, "failed": 0, "seconds": lines[-1]["seconds"], "folder": str(out),
        "records_failed": {},
    }  # fmt: skip
    assert sorted(o.options["u"] for o in outcomes(out)) == [1.0] * 4 + [3.0] * 4
    before = written(out)
    again = run(out, "--record", f"{records}/*", *TWO_BY_TWO, "--json")
    assert json.loads(again.out)["kept"] == 8
    assert written(out) == before


def test_a_cell_has_the_numbers_of_bench_defend(records: Path, tmp_path: Path) -> None:
    record = records / "badnets-1"
    run(tmp_path / "out", "--record", record, "--method", "bnp:u=2", "--seeds", "5", "--n-budget", "2")
    [cell] = outcomes(tmp_path / "out")
    alone = bench(
        "defend", "--record", record, "--method", "bnp", "--option", "u=2", "--seed", "5", "--n-budget", "2", "--device", "cpu",
        "--json",
    ).json  # fmt: skip
    assert cell.after is not None
    assert {name: getattr(cell.after, name) for name in ("acc", "asr", "ra")} == {
        name: alone["after"][name] for name in ("acc", "asr", "ra")
    }
    assert (cell.der, cell.budget, cell.options) == (alone["der"], alone["budget"], alone["options"])


def test_nothing_is_written_into_a_record(records: Path, tmp_path: Path) -> None:
    before = written(records)
    run(tmp_path / "out", "--record", f"{records}/*", "--method", "clp")
    assert written(records) == before


def pruned(outcome: Outcome) -> str:
    """The channels that a cell lost."""
    found = {name: layer["pruned"] for name, layer in (outcome.mask or {}).items() if layer["pruned"]}
    return json.dumps(found, sort_keys=True)


def test_a_record_is_opened_once_and_no_network_judged_twice(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0
    own_open = BuiltinAdapter.open

    def open_counted(self: BuiltinAdapter, path: Path, *, trust: bool = False) -> object:
        nonlocal opened
        opened += 1
        return own_open(self, path, trust=trust)

    monkeypatch.setattr(BuiltinAdapter, "open", open_counted)
    counts = calls_counted(monkeypatch, judge)
    run(tmp_path / "out", "--record", f"{records}/*", *TWO_BY_TWO)
    assert opened == 2
    made = {(each.provenance["path"], pruned(each)) for each in outcomes(tmp_path / "out")}
    repaired = {network for network in made if network[1] != "{}"}
    assert counts["judge"] == 2 + len(repaired) < 2 + 8  # the attacked model of each record, and each that is another


def test_a_record_is_hashed_once_where_nothing_or_all_is_there(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = calls_counted(monkeypatch, record_content)
    given = ("--record", records / "badnets-1", "--method", "clp")
    run(tmp_path / "out", *given)
    assert counts["record_content"] == 1
    run(tmp_path / "out", *given)
    assert counts["record_content"] == 2


def test_what_was_lost_is_run_again_and_nothing_else(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--record", f"{records}/*", *TWO_BY_TWO)
    before = written(out)
    lost = next((out / "cells").iterdir())
    lost.unlink()
    found = run(out, "--record", f"{records}/*", *TWO_BY_TWO, "--json")
    assert json.loads(found.out.splitlines()[-1])["ran"] == 1
    now = written(out)
    assert [path for path in before if now.get(path) != before[path]] == [lost]


def test_a_record_that_changed_is_another_one(records: Path, tmp_path: Path) -> None:
    out, record = tmp_path / "out", records / "badnets-1"
    run(out, "--record", record, "--method", "clp")
    run(out, "--record", shutil.copytree(record, records / "copy"), "--method", "clp")
    assert len(outcomes(out)) == 1
    description = record / "record.json"
    description.write_text(description.read_text() + "\n")
    run(out, "--record", record, "--method", "clp")
    assert len(outcomes(out)) == 2


def test_a_cell_that_fails_is_stored_stops_no_other_and_is_tried_again_when_asked(
    records: Path, tmp_path: Path
) -> None:
    well, out = tmp_path / "well", tmp_path / "out"
    mine = own_defense(
        tmp_path / "own", f"if not Path({str(well)!r}).exists(): raise ConfigError('not today')\n        return Repaired(model)"
    )  # fmt: skip
    given = ("--record", f"{records}/*", *mine, "--method", "clp")
    found = run(out, *given)
    assert found.code == 3
    assert "failed: mine, seed 0, on badnets-1: not today" in found.err
    assert sorted(o.status for o in outcomes(out)) == ["failed", "failed", "ok", "ok"]
    well.touch()
    still = run(out, *given)
    assert (still.code, "0 ran, 4 kept, 2 failed" in still.err) == (3, True)
    assert run(out, *given, "--again", "failed").code == 0
    assert {o.status for o in outcomes(out)} == {"ok"}


def test_a_bug_of_a_method_is_its_own_cells_failure(records: Path, tmp_path: Path) -> None:
    mine = own_defense(tmp_path / "own", "raise ZeroDivisionError('a bug')")
    assert run(tmp_path / "out", "--record", records / "badnets-1", *mine, "--method", "clp").code == 3
    assert {o.method: o.error for o in outcomes(tmp_path / "out")} == {
        "mine": "ZeroDivisionError: a bug", "clp": None,
    }  # fmt: skip


def test_a_record_that_cannot_be_opened_is_told_and_the_others_are_run(records: Path, tmp_path: Path) -> None:
    weights = records / "badnets-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    found = run(tmp_path / "out", "--record", f"{records}/*", "--method", "clp")
    assert found.code == 3
    assert f"failed: {records / 'badnets-1'}: " in found.err
    assert len(outcomes(tmp_path / "out")) == 1


def test_all_runs_everything_again_and_never_nothing(records: Path, tmp_path: Path) -> None:
    given = (tmp_path / "out", "--record", records / "badnets-1", "--method", "clp")
    assert run(*given, "--again", "never").code == 0
    assert not (tmp_path / "out").exists()
    run(*given)
    before = written(tmp_path / "out" / "cells")
    run(*given, "--again", "never")
    assert written(tmp_path / "out" / "cells") == before
    run(*given, "--again", "all")
    assert written(tmp_path / "out" / "cells") != before


def test_a_dry_run_shows_the_cells_and_runs_none(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--record", records / "badnets-1", "--method", "clp")
    before = written(out)
    found = run(out, "--record", f"{records}/*", "--method", "clp", "--method", "bnp", "--dry-run", "--json").json
    assert [(Path(row["record"]).name, row["method"], row["there"], row["due"]) for row in found["cells"]] == [
        ("badnets-1", "clp", "ok", False),
        ("badnets-1", "bnp", None, True),
        ("badnets-2", "clp", None, True),
        ("badnets-2", "bnp", None, True),
    ]
    assert found["unknown"] == ["bnp"]
    assert found["seconds"] == outcomes(out)[0].seconds  # one cell of CLP is left
    assert written(out) == before


@pytest.mark.usefixtures("small")
def test_attacks_make_records_first_once(tmp_path: Path) -> None:
    given = ("--attack", "badnets", "--attack", "blended:all", "--attack-seeds", "3", "--method", "clp", "--seeds", "3")
    assert run(tmp_path, *given).code == 0
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == ["badnets-seed3", "blended-all-seed3"]
    before = written(tmp_path)
    assert run(tmp_path, *given).code == 0
    assert written(tmp_path) == before


@pytest.mark.usefixtures("small")
def test_a_record_of_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--attack", "badnets", "--method", "clp")
    run(tmp_path, *given)
    monkeypatch.setattr(toolbox, "PRESETS", {**PRESETS, "small": replace(TINY, poison_rate=0.2)})
    found = run(tmp_path, *given)
    assert found.code == 2
    assert "badnets-seed0 holds a record of other settings than preset 'small'" in found.err


def test_a_file_says_the_same_as_the_command_line_and_what_is_typed_wins(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"record: '{records}/*'\nmethod: [clp, {{clp: {{u: 1}}}}]\nseeds: [0, 1]\nattack-seeds: 0\ndry_run: true\n"
    )
    typed = run(tmp_path / "out", "--record", f"{records}/*", *TWO_BY_TWO, "--dry-run", "--json").json
    assert run(tmp_path / "out", file, "--json").json == typed
    one = run(tmp_path / "out", file, "--seeds", "7", "--json").json
    assert {row["seed"] for row in one["cells"]} == {7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("methods: [clp]", "unknown option 'methods'"),
        ("- clp", "expected options by name"),
        ("threads: many", "threads: Input should be a valid integer"),
        ("scale: large", "scale: Input should be 'paper' or 'small'"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(content)
    assert message in refused("leaderboard", "run", file, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "expected records"),
        (["--attack", "badnet"], "unknown attack 'badnet'"),
        (["--attack", "badnets", "--preset", "tiny"], "unknown preset 'tiny'"),
        (["--attack", "badnets:eleven"], "expected a class number or `all`"),
        (["--attack", "badnets", "--method", "cpl"], "unknown defense 'cpl'"),
        (["--attack", "badnets", "--method", "clp:v=2"], "unknown option 'v'"),
        (["--attack", "badnets", "--method", "clp:u=two"], "u"),
        (["--attack", "badnets", "--method", "nobody:clp"], "unknown toolbox 'nobody'"),
        (["--attack", "badnets", "--method", "clp", "--method", "clp"], "clp is given twice"),
        (["--attack", "badnets", "--seeds", "a"], "--seeds: expected whole numbers from 0 to"),
        (["--attack", "badnets", "--attack-seeds", "a"], "--attack-seeds: expected whole numbers from 0 to"),
        (["--attack", "badnets", "--shard", "3/2"], "--shard: expected I/N"),
        (["--attack", "badnets", "--workers", "999"], "--workers 999"),
        (["--attack", "badnets", "--address", "auto"], "--address has no meaning"),
        (
            ["--attack", "badnets", "--executor", "ray", "--address", "auto", "--workers", "2"],
            "--workers has no meaning with --address",
        ),
        (["--record", "no/such/place"], "there is no record at"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, more: list[str], message: str) -> None:
    assert message in refused("leaderboard", "run", "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_finds_no_record_is_a_mistake(records: Path, tmp_path: Path) -> None:
    shutil.rmtree(records / "badnets-1")
    shutil.rmtree(records / "badnets-2")
    assert "1 places fit, and none is a record" in refused(
        "leaderboard", "run", "--record", f"{records}/n*", "--out", tmp_path / "out"
    )


def test_a_log_tells_how_far_the_grid_is(records: Path, tmp_path: Path) -> None:
    given = (tmp_path / "out", "--record", f"{records}/*", *TWO_BY_TWO)
    lines = run(*given).err.splitlines()
    assert [line.partition(" ")[0] for line in lines[:8]] == [f"[{number}/8]" for number in range(1, 9)]
    assert lines[8].startswith("8 cells, 8 ran, 0 kept, 0 failed")


def test_a_terminal_shows_a_bar_for_the_grid_and_one_a_record() -> None:
    """The bars themselves are rich's: a stand-in notes what is asked of them."""
    asked: list[tuple[object, ...]] = []

    class Bars:
        console = SimpleNamespace(print=lambda text, **how: asked.append(("line", text)))

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **more: asked.append((name, *args, *more.values())) or len(asked)

    shown = _Bars(Bars(), 2)  # type: ignore[arg-type]
    outcome = Outcome(method="clp", command="", seed=0, device="cpu", seconds=1, status="failed", error="no")
    for event in (
        Started("r/a", "opening"), Started("r/a", "clp, seed 0, on a", "clp-1"), Progressed("r/a", 1, 4),
        Ended("r/a", "clp, seed 0, on a", outcome), Closed("r/a"),
    ):  # fmt: skip
        shown(event)
    assert [each for each in asked if each[0] == "add_task"] == [
        ("add_task", "cells", 2),
        ("add_task", "a: opening", None),
    ]
    assert ("line", "clp, seed 0, on a: failed: no") in asked
    assert asked[-1] == ("update", 1, 1, "cells, 1 failed")
    assert [each[0] for each in asked].count("remove_task") == 1
    assert shown.counts() == {"cells": 1, "ran": 1, "kept": 0, "failed": 1}


def test_seeds() -> None:
    assert parse_seeds("0,4") == [0, 4]
    assert list(parse_seeds("2:5")) == [2, 3, 4]
    for text in ("", "-1", "3:3", "1.5"):
        with pytest.raises(ConfigError):
            parse_seeds(text)
