"""Nothing is fused, scored, read or evaluated twice in a run on a record of the toolbox."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from backdoorbench_trees import CLASSES, Tree, write_record
from command_line import bench
from counting import calls_counted
from csv_tables import csv_table
from fake_checkout import fake_checkout, without_bridges

from clp_plugin.adapters.backdoorbench.attack_result import read_attack_result
from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.adapters.backdoorbench.results import read_model
from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench  # noqa: F401 - so that its calls are counted
from clp_plugin.cli.commands import defend, defend_toolbox  # noqa: F401
from clp_plugin.defenses.clp import CLP  # noqa: F401
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.evaluation.metrics import judge
from clp_plugin.evidence import sweep as sweeping
from clp_plugin.fusion.layers import fuse
from clp_plugin.scoring.lipschitz import score
from clp_plugin.types import Mask

NETWORK = "mobilenet_v3_large"


@pytest.fixture
def tree(no_checkout: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A checkout with a record of a network that has BatchNorms."""
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(tmp_path / "none.yaml"))
    weights = build(NETWORK, CLASSES).state_dict()
    root = fake_checkout(tmp_path / "bench", stored="badnet_0_1")
    return write_record(
        root, weights=weights, edit=lambda content: content.update(model_name=NETWORK), info={"model": NETWORK}
    )


@pytest.fixture
def counts(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return calls_counted(monkeypatch, fuse, score, judge, evaluate_masks, read_attack_result, read_model)


def test_clp_costs_one_view_one_scoring_and_two_evaluations(tree: Tree, counts: Counter[str]) -> None:
    assert bench("defend", "--record", tree.folder, "--device", "cpu", "--json").code == 0
    assert counts == {"read_attack_result": 1, "fuse": 1, "score": 1, "judge": 2}
    assert not (tree.folder / "defense" / "clp_plugin" / "u_step_df.csv").exists()


def test_a_sweep_uses_the_scores_and_what_was_judged_already(
    tree: Tree, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[Mask] = []
    judging = sweeping.evaluate_masks

    def noting(model: object, record: object, masks: list[Mask], **options: object) -> object:
        run.extend(masks)
        return judging(model, record, masks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweeping, "evaluate_masks", noting)
    monkeypatch.setattr(defend, "_draw", lambda *_: None)  # figures of 60 layers take seconds
    found = bench("defend", "--record", tree.folder, "--device", "cpu", "--sweep", "2,3,99", "--json").json
    assert counts == {"read_attack_result": 1, "fuse": 1, "score": 1, "judge": 2, "evaluate_masks": 1}
    assert len(run) == 1, "u = 3 is the run's own and u = 99 prunes nothing: both were judged already"
    folder = tree.folder / "defense" / "clp_plugin"
    table = csv_table(folder / "u_step_df.csv", index_col=0)
    assert table["u"].tolist() == [2, 3, 99]
    assert table["test_acc"].tolist()[1:] == [found["after"]["acc"], found["before"]["acc"]]
    summary = csv_table(folder / "clp_plugin_df_summary.csv", index_col=0)
    assert summary.iloc[0].to_dict() == table.iloc[1].to_dict()


def test_a_script_of_the_toolbox_costs_one_reading_of_record_and_result(
    tree: Tree, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_bridges(monkeypatch)
    said = bench("defend", "--record", tree.folder, "--method", "ft", "--impl", "toolbox", "--device", "cpu", "--json")
    assert said.json["reported"] == {"acc": 0.5, "asr": 0.25, "ra": 0.125}
    assert counts == {"read_attack_result": 1, "read_model": 1, "judge": 2}
