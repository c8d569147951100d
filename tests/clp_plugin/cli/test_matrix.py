"""bench matrix: cells are run once, kept, and tabulated; a cell that fails stops no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_records  # noqa: F401 - one thread
import pandas as pd
import pytest
from command_line import bench, refused

from clp_plugin.adapters.builtin import settings as recipes
from clp_plugin.adapters.builtin import toolbox
from clp_plugin.adapters.builtin.settings import PRESETS
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.cli.commands.matrix import parse_seeds
from clp_plugin.errors import ConfigError
from clp_plugin.reports.matrix import matrix_figure, matrix_markdown
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome, load_outcome

TINY = replace(
    PRESETS["small"],
    recipe=Recipe(epochs=1, lr=0.05, batch_size=32, precision="float32"),
    n_train=200,
    n_test=60,
    model_options={"width": 2, "blocks": (1, 1)},
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset, made tiny."""
    tiny = {**recipes.PRESETS, "small": TINY}
    monkeypatch.setattr(toolbox, "PRESETS", tiny)


def matrix(out: Path, *more: object) -> Any:
    base = ["--attack", "badnets", "--attack", "blended:all", "--defense", "clp", "--seeds", "3", "--device", "cpu"]
    return bench("matrix", "--out", out, *base, *more, "--json")


@pytest.mark.usefixtures("small")
def test_each_cell_is_run_once(tmp_path: Path) -> None:
    found = matrix(tmp_path).json
    assert (found["cells"], found["failed"]) == (2, 0)
    cells = sorted(tmp_path.glob("*/defense/clp/default-seed3/outcome.json"))
    assert [cell.parts[-5] for cell in cells] == ["badnets-seed3", "blended-all-seed3"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.parent != tmp_path}
    assert matrix(tmp_path).json["cells"] == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.parent != tmp_path} == before
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"matrix.{end}" for end in ("csv", "md", "png", "pdf")
    }
    frame = pd.read_csv(tmp_path / "matrix.csv")
    assert frame["method"].tolist() == ["clp", "clp"]
    assert frame["seed"].tolist() == [3, 3]


@pytest.mark.usefixtures("small")
def test_a_cell_that_was_lost_is_run_again_and_no_other(tmp_path: Path) -> None:
    matrix(tmp_path)
    lost, kept = (
        tmp_path / f"{name}-seed3/defense/clp/default-seed3/outcome.json" for name in ("badnets", "blended-all")
    )
    lost.unlink()
    before = kept.stat().st_mtime_ns
    matrix(tmp_path)
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == before


@pytest.mark.usefixtures("small")
def test_a_cell_that_fails_is_stored_so_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from clp_plugin.defenses.base import Repaired\n"
        "from clp_plugin.errors import ConfigError\n"
        "class Mine:\n"
        "    budget = 'none'\n"
        "    def repair(self, model, budget, *, seed, progress=None):\n"
        f"        if not Path({str(tmp_path / 'well')!r}).exists(): raise ConfigError('not today')\n"
        "        return Repaired(model)\n"
    )
    (tmp_path / "mine.yaml").write_text("defenses:\n  mine: {object: 'mine.py:Mine', summary: s}\n")
    more = ("--defense", "mine", "--registry", tmp_path / "mine.yaml")
    found = matrix(tmp_path / "out", *more)
    assert found.json["failed"] == 2
    assert "not today" in found.err
    cell = tmp_path / "out/badnets-seed3/defense/mine/default-seed3/outcome.json"
    assert (load_outcome(cell).status, load_outcome(cell).error) == ("failed", "not today")
    assert "Failed: mine on badnets-seed3: not today" in (tmp_path / "out/matrix.md").read_text()
    (tmp_path / "well").touch()
    assert matrix(tmp_path / "out", *more).json["failed"] == 0
    assert load_outcome(cell).status == "ok"


@pytest.mark.usefixtures("small")
def test_a_method_that_breaks_down_stops_no_other_cell(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    budget = 'none'\n    def repair(self, *args, **options): raise ZeroDivisionError('a bug')\n"
    )
    (tmp_path / "mine.yaml").write_text("defenses:\n  mine: {object: 'mine.py:Mine', summary: s}\n")
    found = matrix(tmp_path / "out", "--defense", "mine", "--registry", tmp_path / "mine.yaml").json
    assert (found["cells"], found["failed"]) == (4, 2)
    cell = tmp_path / "out/badnets-seed3/defense/mine/default-seed3/outcome.json"
    assert load_outcome(cell).error == "ZeroDivisionError: a bug"


@pytest.mark.usefixtures("small")
def test_an_outcome_of_another_model_or_other_options_is_not_taken_for_this_one(tmp_path: Path) -> None:
    matrix(tmp_path)
    cell = tmp_path / "badnets-seed3/defense/clp/default-seed3/outcome.json"
    good = cell.read_text()
    sha256 = load_outcome(cell).provenance["sha256"]
    for wrong in (good.replace(sha256, "0" * 64), good.replace('"u": 3.0', '"u": 7.0')):
        assert wrong != good
        cell.write_text(wrong)
        matrix(tmp_path)
        assert load_outcome(cell).provenance["sha256"] == sha256
        assert load_outcome(cell).options["u"] == 3.0


def test_options_are_compared_as_a_file_tells_them() -> None:
    assert outcome("a", "nad", 0, 0.9, 0.1, options={"betas": [1.0, 2.0]}).has_options({"betas": (1.0, 2.0)})
    assert not outcome("a", "nad", 0, 0.9, 0.1, options={"betas": [1.0, 2.0]}).has_options({"betas": (1.0, 3.0)})


@pytest.mark.usefixtures("small")
def test_a_record_of_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix(tmp_path)
    monkeypatch.setattr(toolbox, "PRESETS", {**PRESETS, "small": replace(TINY, poison_rate=0.2)})
    base = ["matrix", "--out", tmp_path, "--attack", "badnets", "--defense", "clp", "--seeds", "3", "--device", "cpu"]
    assert "badnets-seed3 holds a record of other settings than preset 'small'" in refused(*base)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attack", "badnet"], "unknown attack 'badnet'"),
        (["--defense", "cpl"], "unknown defense 'cpl'"),
        (["--preset", "tiny"], "unknown preset 'tiny'"),
        (["--seeds", "a"], "--seeds: expected whole numbers from 0 to"),
        (["--attack", "badnets:eleven"], "expected a class number or `all`"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, more: list[str], message: str) -> None:
    assert message in refused("matrix", "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_seeds() -> None:
    assert parse_seeds("0,4") == [0, 4]
    assert list(parse_seeds("2:5")) == [2, 3, 4]
    for text in ("", "-1", "3:3", "1.5"):
        with pytest.raises(ConfigError):
            parse_seeds(text)


def outcome(record: str, method: str, seed: int, acc: float, asr: float, **more: Any) -> Outcome:
    before = {"acc": 0.98, "asr": 0.9 + 0.1 * seed, "ra": 0.0, "base_rate": 0.01, "n_clean": 10, "n_triggered": 9}
    facts: dict[str, Any] = {
        "method": method, "command": "", "seed": seed, "device": "cpu", "seconds": 1.5 + seed, "before": before,
        "after": {**before, "acc": acc, "asr": asr, "ra": 0.5}, "der": 0.75,
        "provenance": {"path": f"runs/{record}-seed{seed}", "attack": record.partition("-")[0], "sha256": f"{record}{seed}"},
    }  # fmt: skip
    return Outcome.model_validate({**facts, **more})


OUTCOMES = [
    outcome("badnets", "clp", 0, 0.9, 0.0),
    outcome("badnets", "clp", 1, 0.8, 0.5),
    outcome("badnets", "ft", 0, 0.7, 0.25),
    outcome("badnets-all", "clp", 0, 0.6, 0.125, protocol="oracle"),
    outcome("badnets-all", "ft", 0, 0.0, 0.0, after=None, before=None, der=None, status="failed", error="boom"),
]


def test_the_table_holds_means_over_seeds_and_dashes_where_nothing_was_run() -> None:
    page = matrix_markdown(outcomes_frame(OUTCOMES))
    lines = page.splitlines()
    assert lines[2] == "| attack | before | base | clp | ft | clp (oracle) |"
    assert lines[4] == "| badnets | 98.0 / 95.0 | 1.0 | 85.0 / 25.0 | 70.0 / 25.0 | - |"
    assert lines[5] == "| badnets-all | 98.0 / 90.0 | 1.0 | - | - | 60.0 / 12.5 |"
    assert "| badnets | 50 | 0 | - |" in page  # range over seeds
    assert "| badnets | 2.0 | 1.5 | - |" in page  # seconds
    assert "Failed: ft on badnets-all-seed0: boom" in page


def test_a_model_counts_once_however_its_folder_was_called() -> None:
    here = outcome("a", "clp", 0, 0.9, 0.0)
    there = outcome("a", "ft", 0, 0.9, 0.0).model_copy(
        update={"provenance": {**here.provenance, "path": "/elsewhere/a-seed0"}}
    )
    page = matrix_markdown(outcomes_frame([here, there, outcome("a", "clp", 1, 0.9, 0.0)]))
    assert (
        "| a | 98.0 / 95.0 | 1.0 | 90.0 / 0.0 | 90.0 / 0.0 |" in page
    )  # not weighted towards the seed with two methods


def test_it_says_how_far_the_toolboxs_own_numbers_are_from_ours() -> None:
    told = outcome("a", "ft", 0, 0.9, 0.0, implementation="backdoorbench", reported={"acc": 0.7, "asr": 0.0})
    page = matrix_markdown(outcomes_frame([told, outcome("a", "clp", 0, 0.9, 0.0)]))
    assert "Of 1 runs a toolbox's script told ACC, ASR or RA of its own: at most 2 test images apart" in page
    assert "told" not in matrix_markdown(outcomes_frame(OUTCOMES))


def test_models_of_one_name_in_two_places_stay_apart() -> None:
    here = outcome("a", "clp", 0, 0.9, 0.0)
    mine, yours = (
        here.model_copy(update={"provenance": {"path": f"/{whose}/badnet_0_1", "sha256": whose}})
        for whose in ("me", "you")
    )
    page = matrix_markdown(outcomes_frame([mine, yours]))
    assert "| /me/badnet_0_1 | 98.0 / 90.0 |" in page
    assert "| /you/badnet_0_1 | 98.0 / 90.0 |" in page


def test_the_summary_counts_records_where_the_backdoor_is_gone_for_little_accuracy() -> None:
    never = {"acc": 0.98, "ra": 0.0, "n_clean": 10, "n_triggered": 9}
    outcomes = [
        outcome("a", "clp", 0, 0.93, 0.1),  # both at their limits: 0.98 - 0.05, and 10 %
        outcome("b", "clp", 0, 0.92, 0.0),  # too dear
        outcome("c", "clp", 0, 0.98, 0.11),  # still there
        outcome("a", "ft", 0, 0.97, 0.04),
        outcome(
            "d", "ft", 0, 0.97, 0.04, before={**never, "asr": 0.05, "base_rate": 0.01}
        ),  # there was nothing to remove
    ]
    page = matrix_markdown(outcomes_frame(outcomes))
    assert "| method | removed | mean ACC % | mean ASR % | mean DER |" in page
    assert "| clp | 1 of 3 | 94.3 | 7.0 | 0.75 |" in page
    assert "| ft | 1 of 1 | 97.0 | 4.0 | 0.75 |" in page


def test_the_figure_shows_the_same_numbers() -> None:
    figure = matrix_figure(outcomes_frame(OUTCOMES))
    acc, asr, der = figure.axes
    assert [label.get_text() for label in acc.get_xticklabels()] == ["before", "clp", "ft", "clp (oracle)"]
    assert [text.get_text() for text in asr.texts] == ["95", "25", "25", "-", "90", "-", "-", "12"]
    assert [text.get_text() for text in der.texts] == ["75", "75", "-", "-", "-", "75"]


def test_nothing_to_show_is_told() -> None:
    for page in (matrix_markdown, matrix_figure):
        with pytest.raises(ConfigError, match="at least one outcome with metrics"):
            page(outcomes_frame(OUTCOMES[-1:]))
