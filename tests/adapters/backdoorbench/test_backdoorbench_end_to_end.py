"""From a record on disk to the files that the toolbox's own tools read, through the command line and the toolbox's habit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backdoorbench_trees import Tree, write_record
from command_line import bench, refused
from csv_tables import csv_table
from fake_checkout import content

from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.adapters.backdoorbench.registration import register
from clp_plugin.store.outcomes import load_outcome

COLUMNS = ["u", "clean_test_loss_avg_over_batch", "bd_test_loss_avg_over_batch", "test_acc", "test_asr", "test_ra"]


@pytest.fixture
def tree(no_checkout: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Names as people have them: spaces, letters beyond ASCII, a parent that the toolbox would trip over."""
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(tmp_path / "none.yaml"))
    root = tmp_path / "recordings für später" / "bench"
    for mark in ("attack", "defense", "utils"):
        (root / mark).mkdir(parents=True)
    (root / "utils" / "save_load_attack.py").touch()
    return write_record(root)


def test_clp_writes_what_the_toolbox_reads_and_touches_nothing_else(tree: Tree) -> None:
    before = content(tree.root)
    common = ("--toolbox", "backdoorbench", "--root", tree.root, "--device", "cpu")
    found = bench("defend", "--record", "badnet_0_1", *common, "--sweep", "0,3", "--json").json
    folder = tree.folder / "defense" / "clp_plugin"
    assert found["outcome"] == str(folder / "outcome.json")
    after = content(tree.root)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("record/badnet_0_1/defense/clp_plugin/") for name in after.keys() - before.keys())
    result = torch.load(folder / "defense_result.pt", weights_only=True)
    build(result["model_name"], result["num_classes"]).load_state_dict(result["model"])
    for table, rows in (("clp_plugin_df_summary.csv", 1), ("u_step_df.csv", 2)):
        frame = csv_table(folder / table, index_col=0)
        assert list(frame.columns) == COLUMNS
        assert len(frame) == rows
    assert frame["test_acc"].tolist()[1] == found["after"]["acc"]
    assert (
        "does nothing here" in load_outcome(folder / "outcome.json").log["published_rule"]
    )  # squeezenet has no BatchNorm


def test_the_registered_script_does_the_same_in_the_toolboxs_habit(tree: Tree) -> None:
    register(tree.root)
    arguments = ["--result_file", "badnet_0_1", "--dataset", "cifar10", "--model", "squeezenet1_0", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "defense/clp_plugin.py", *arguments, "--num_workers", "4", "--u_max", "2", "--u_num", "3"],
        cwd=tree.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not used here: --model, --num_workers" in done.stderr
    folder = tree.folder / "defense" / "clp_plugin"
    assert csv_table(folder / "u_step_df.csv")["u"].tolist() == [0, 1, 2]
    outcome = load_outcome(folder / "outcome.json")
    assert (outcome.method, outcome.options["u"], outcome.seed) == ("clp", 3, 0)


def test_parity_goes_to_a_folder_of_its_own_and_compare_shows_both(tree: Tree, tmp_path: Path) -> None:
    common = ("--toolbox", "backdoorbench", "--root", tree.root)
    for more in ((), ("--parity",)):
        assert bench("defend", "--record", "badnet_0_1", *common, "--device", "cpu", *more).code == 0
    found = bench("compare", "--record", "badnet_0_1", *common, "--out", tmp_path / "out", "--json").json
    assert {row["record"] for row in found["rows"]} == {"badnet_0_1"}
    assert len(found["rows"]) == 2
    assert (tree.folder / "defense" / "clp_plugin_parity" / "defense_result.pt").is_file()


def test_mistakes_name_what_there_is(tree: Tree, tmp_path: Path) -> None:
    common = ("--toolbox", "backdoorbench", "--root", tree.root)
    assert "there: badnet_0_1" in refused("defend", "--record", "nope", *common)
    anp = bench("defend", "--record", "badnet_0_1", *common, "--impl", "toolbox", "--method", "anp")
    assert anp.code == 2
    assert "knows only preactresnet18" in anp.err
    unknown = refused("defend", "--record", "badnet_0_1", *common, "--impl", "toolbox", "--method", "nope")
    assert "unknown defense 'nope'; known: anp, bnp, clp" in unknown
    assert "is no BackdoorBench checkout" in refused("toolbox", "check", "backdoorbench", "--root", tmp_path)
    assert "unknown attack 'badnet'; known: none" in refused("attack", "--method", "badnet", "--out", "x", *common)
