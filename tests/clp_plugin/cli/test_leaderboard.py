"""``bench leaderboard``: what was run below some folders, ranked, tabulated and as a page, by commands."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import bench, refused
from csv_tables import csv_table
from matplotlib.figure import Figure
from numpy.typing import NDArray
from own_parts import TARGET, own_parts
from PIL import Image

from clp_plugin.reports import paper
from clp_plugin.store.outcomes import Outcome, save_outcome

CELL = {
    "record", "attack", "dataset", "architecture", "method", "label", "implementation", "options", "seed", "protocol", "budget",
    "status", "before_acc", "before_asr", "before_base_rate", "after_acc", "after_asr", "after_ra", "der", "seconds", "pruned",
    "reported_acc", "reported_asr", "reported_ra", "apart", "error",
}  # fmt: skip


FIGURES = ("sweeps", "matrix", "tradeoff", "effectiveness", "cost")


def store(root: Path, record: str, method: str, asr: float, **changes: Any) -> None:
    counts = {"n_clean": 100, "n_triggered": 90, "base_rate": 0.0, "ra": 0.5}
    place = root / record
    facts: dict[str, Any] = {
        "method": method, "command": "", "seed": 0, "device": "cpu", "seconds": 1.0,
        "provenance": {
            "attack": record.split("-")[0], "dataset": "d", "architecture": "a", "sha256": record, "path": str(place),
        },
        "before": {"acc": 0.9, "asr": 1.0, **counts}, "after": {"acc": 0.8, "asr": asr, **counts}, "der": (1.9 - asr) / 2,
    }  # fmt: skip
    outcome = Outcome(**{**facts, **changes})
    save_outcome(outcome, place / "defense" / method / f"seed{outcome.seed}" / "outcome.json")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for record, clp, ft in (("badnets-seed0", 0.1, 0.5), ("badnets-seed1", 0.3, 0.7), ("wanet-seed0", 0.9, 0.8)):
        store(tmp_path, record, "clp", clp)
        store(tmp_path, record, "ft", ft)
    sweep = tmp_path / "wanet-seed0" / "analysis" / "sweep-paper-reshaped"
    sweep.mkdir(parents=True)
    (sweep / "sweep.csv").write_text("u,pruned,acc,asr,ra\n1.0,9,0.5,0.2,\n3.0,1,0.9,0.8,0.1\n")
    return tmp_path


def test_cells_methods_and_statements_are_told_to_scripts(runs: Path) -> None:
    told = bench("leaderboard", "show", runs, "--json").json
    assert {frozenset(cell) for cell in told["cells"]} == {frozenset(CELL)}
    assert [(row["label"], row["records"]) for row in told["methods"]] == [("clp", 3), ("ft", 3)]
    assert told["methods"][0]["asr"] == pytest.approx((0.1 + 0.3 + 0.9) / 3)
    assert "cannot tell" in told["statements"][0]


def test_people_see_the_same_table(runs: Path) -> None:
    shown = bench("leaderboard", "show", runs / "badnets-seed0", runs / "badnets-seed1", "--sort", "asr")
    assert shown.code == 0
    assert "20.0" in shown.out
    assert "removed: ASR falls to 10 % or less" in shown.err


def test_programs_get_csv_markdown_and_latex(runs: Path) -> None:
    csv = csv_table(io.StringIO(bench("leaderboard", "show", runs, "--csv", "--by", "attack").out))
    assert csv.groupby("attack")["asr"].min().to_dict() == pytest.approx({"badnets": 0.2, "wanet": 0.8})
    markdown = bench("leaderboard", "show", runs, "--markdown").out
    assert "| clp" in markdown
    assert "removed: ASR falls" in markdown
    assert r"\toprule" in bench("leaderboard", "show", runs, "--latex").out
    assert "expected one form, found --json and --csv" in refused("leaderboard", "show", runs, "--csv", "--json")


def test_groups_are_ranked_apart(runs: Path) -> None:
    told = bench("leaderboard", "show", runs, "--by", "attack", "--json").json
    assert {name: [row["label"] for row in group["methods"]] for name, group in told["groups"].items()} == {
        "badnets": ["clp", "ft"], "wanet": ["ft", "clp"],
    }  # fmt: skip
    assert len(told["methods"]) == 2


@pytest.mark.parametrize("form", [[], ["--csv"], ["--markdown"], ["--latex"], ["--json"]])
@pytest.mark.parametrize("by", [[], ["--by", "attack"]])
def test_failures_alone_are_no_leaderboard(tmp_path: Path, form: list[str], by: list[str]) -> None:
    store(tmp_path, "badnets-seed0", "clp", 0.1, status="failed", error="no", after=None, der=None)
    assert "at least one outcome with metrics" in refused("leaderboard", "show", tmp_path, *form, *by)


def test_without_a_folder_it_is_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.rename(runs.with_name("runs"))
    monkeypatch.chdir(runs.parent)
    assert len(bench("leaderboard", "show", "--json").json["cells"]) == 6


def test_one_outcome_below_two_folders_counts_once(runs: Path) -> None:
    assert len(bench("leaderboard", "show", runs, runs / "wanet-seed0", "--json").json["cells"]) == 6


def test_a_record_that_is_spelled_in_two_ways_is_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    facts = {"attack": "wanet", "dataset": "d", "architecture": "a", "sha256": "wanet-seed0", "path": "wanet-seed0"}
    store(runs, "wanet-seed0", "ep", 0.1, provenance=facts)
    told = bench("leaderboard", "show", runs, "--json").json
    assert {cell["record"] for cell in told["cells"] if cell["attack"] == "wanet"} == {str(runs / "wanet-seed0")}


def test_outcomes_are_chosen_by_their_columns(runs: Path) -> None:
    told = bench("leaderboard", "show", runs, "--where", "attack=wanet", "--where", "method=clp", "--json").json
    assert [(cell["attack"], cell["method"]) for cell in told["cells"]] == [("wanet", "clp")]
    both = ("--where", "method=clp", "--where", "method=ft")
    assert len(bench("leaderboard", "show", runs, *both, "--json").json["cells"]) == 6
    assert "there are: badnets, wanet" in refused("leaderboard", "show", runs, "--where", "attack=nope")
    assert "unknown column 'attacks'" in refused("leaderboard", "show", runs, "--where", "attacks=nope")
    assert "expected COLUMN=VALUE" in refused("leaderboard", "show", runs, "--where", "attack")


def test_tables_of_the_paper_and_the_figure_of_sweeps_are_written(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    told = bench("leaderboard", "tables", runs, "--out", out, "--json").json
    assert {path.name for path in out.iterdir()} == set(told["files"]) == {
        "performance.md", "performance.tex", "performance.csv", "seconds.md", "seconds.tex", "seconds.csv", "outcomes.csv",
        "matrix.md", *(f"{name}.{end}" for name in FIGURES for end in ("png", "pdf")),
    }  # fmt: skip
    table = csv_table(out / "performance.csv", index_col="attack")
    assert table.loc["badnets", "clp ASR"] == pytest.approx(20)
    assert table.loc["Average", "ft ASR"] == pytest.approx((60 + 80) / 2)


def test_the_figure_of_sweeps_keeps_to_the_chosen_outcomes(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    told = bench("leaderboard", "tables", runs, "--out", out, "--where", "attack=badnets", "--json").json
    assert "sweeps.png" not in told["files"]  # only the record of wanet was swept


@pytest.mark.parametrize(
    ("by", "panels"),
    [
        ("attack", {"badnets": 2, "badnets (all to all)": 1, "wanet": 1}),
        ("record", {"badnets": 2, "badnets-all": 1, "wanet": 1}),
        ("architecture", {"a": 4}),
    ],
)
def test_a_panel_of_sweeps_holds_the_seeds_of_one_attack(
    by: str, panels: dict[str, int], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(runs, "badnets-all-seed0", "clp", 0.1)
    file = runs / "badnets-all-seed0" / "defense" / "clp" / "seed0" / "outcome.json"
    outcome = json.loads(file.read_text())
    file.write_text(json.dumps({**outcome, "provenance": {**outcome["provenance"], "target": "all to all"}}))
    for record in ("badnets-seed0", "badnets-seed1", "badnets-all-seed0"):
        (runs / record / "analysis").mkdir()
        shutil.copytree(
            runs / "wanet-seed0" / "analysis" / "sweep-paper-reshaped", runs / record / "analysis" / "sweep-x"
        )
    drawn: dict[str, int] = {}

    def drawing(sweeps: Mapping[str, Sequence[object]]) -> Figure:
        drawn.update({title: len(each) for title, each in sweeps.items()})
        return Figure()

    monkeypatch.setattr(paper, "sweeps_figure", drawing)
    bench("leaderboard", "tables", runs, "--by", by, "--out", tmp_path / "tables")
    assert drawn == panels


def test_channel_tables_become_figure_3_a_record(runs: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"layer": "conv", "channel": range(9), "sigma": range(9), "tac": range(9), "pruned": False})
    for parent in (runs, runs / "more"):
        store(parent, "sig-seed0", "clp", 0.5, seconds=float(len(parent.parts)))
        folder = parent / "sig-seed0" / "analysis" / "correlate-paper-reshaped-l2"
        folder.mkdir(parents=True)
        table.to_csv(folder / "tac.csv", index=False)
    told = bench("leaderboard", "tables", runs, "--out", tmp_path / "tables", "--json").json
    assert {name for name in told["files"] if name.startswith("uclc_tac") and name.endswith("png")} == {
        "uclc_tac.png", "uclc_tac-sig-seed0.png", "uclc_tac-sig-seed0-2.png",
    }  # fmt: skip


def test_what_scripts_reported_is_a_table_of_its_own(runs: Path, tmp_path: Path) -> None:
    store(runs, "badnets-seed0", "anp", 0.4, implementation="bb", reported={"asr": 0.5})
    told = bench("leaderboard", "tables", runs, "--out", tmp_path / "tables", "--json").json
    assert {"reported.md", "reported.csv"} <= set(told["files"])
    (row,) = csv_table(tmp_path / "tables" / "reported.csv").to_dict("records")
    assert (row["after_asr"], row["reported_asr"], row["apart"]) == (0.4, 0.5, 9)
    assert "what toolboxes' scripts measured" in bench("leaderboard", "show", runs).out


def test_ranks_of_too_few_records_are_refused_before_anything_is_written(runs: Path, tmp_path: Path) -> None:
    told = refused("leaderboard", "tables", runs, "--out", tmp_path / "tables", "--critical-difference")
    assert "at least 3 methods" in told
    assert not (tmp_path / "tables").exists()


def test_a_page_holds_runs_and_stored_sweeps(runs: Path, tmp_path: Path) -> None:
    told = bench("leaderboard", "page", runs, "--out", tmp_path / "page.html", "--title", "Mine", "--json").json
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (told["runs"], told["records"], told["bytes"]) == (6, 3, len(html.encode()))
    data = json.loads(html.partition('type="application/json">')[2].partition("</script>")[0])
    assert data["records"]["wanet-seed0"]["sweep"][0] == {"u": 1.0, "pruned": 9, "acc": 0.5, "asr": 0.2, "ra": None}


def test_a_page_shows_images_of_records_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path / "data"))
    parts = own_parts(tmp_path)
    where = ("--images", parts.images, "--trigger", parts.trigger, "--at", "bottom-right", "--target", TARGET)
    made = ("--checkpoint", parts.checkpoint, "--arch", parts.arch, *where, "--out", tmp_path / "runs" / "mine")
    assert bench("record", *made).code == 0
    assert bench("defend", "--record", tmp_path / "runs" / "mine").code == 0

    def images(*options: str) -> list[Any]:
        file = tmp_path / "page.html"
        assert bench("leaderboard", "page", tmp_path / "runs", "--out", file, *options).code == 0
        html = file.read_text(encoding="utf-8")
        data = json.loads(html.partition('type="application/json">')[2].partition("</script>")[0])
        return [pair for study in data["records"].values() for pair in study["images"]]

    clean, triggered = (decoded(address) for address in images()[0])
    assert any(np.array_equal(clean, image) for image in parts.pixels.transpose(0, 2, 3, 1))
    clean[-2:, -2:] = 255
    np.testing.assert_array_equal(clean, triggered)
    assert images("--no-images") == []


def decoded(address: str) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_a_folder_without_outcomes_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "run `bench defend` on some records first" in refused("leaderboard", "show", tmp_path / "empty")
    assert "there is no folder" in refused("leaderboard", "page", tmp_path / "no")


def test_a_damaged_sweep_is_told_by_its_path(runs: Path) -> None:
    file = runs / "wanet-seed0" / "analysis" / "sweep-paper-reshaped" / "sweep.csv"
    file.write_text("")
    assert f"{file} is not a table" in refused("leaderboard", "page", runs, "--out", runs / "p.html")
