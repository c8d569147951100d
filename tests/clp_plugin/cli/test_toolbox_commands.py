"""The commands around a toolbox, with a made-up toolbox behind them: what is asked of it, what is stored and shown."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import bench, refused
from csv_tables import csv_table
from fake_records import fake_record
from fake_toolbox import REPORTED, FakeToolbox, fake_registry

from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.store.outcomes import load_outcome


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(tmp_path / "config.yaml"))
    return fake_registry(tmp_path)


@pytest.fixture
def record(registry: Path) -> Path:
    return registry.parent / "checkout" / "record" / "eins"


def defend(registry: Path, *more: object, record: object = "eins") -> Any:
    common = ("--toolbox", "fakebench", "--registry", registry, "--device", "cpu")
    return bench("defend", "--record", record, *common, *more)


def test_a_record_is_found_by_its_name_and_the_result_lies_where_the_toolbox_looks(
    registry: Path, record: Path
) -> None:
    found = defend(registry, "--u", "1", "--sweep", "0:10:0.5", "--json").json
    folder = record / "defense" / "clp_plugin"
    assert found["outcome"] == str(folder / "outcome.json")
    assert found["implementation"] == "clp_plugin"
    assert {path.name for path in folder.iterdir()} == {
        "outcome.json", "mask.json", "weights.safetensors", "weights.pt", "defense_result.pt", "clp_plugin_df_summary.csv",
        "u_step_df.csv", "sweep.png", "sweep.pdf", "scores.png", "scores.pdf",
    }  # fmt: skip
    summary = csv_table(folder / "clp_plugin_df_summary.csv").iloc[0]
    assert (summary["u"], summary["test_acc"], summary["test_asr"]) == (1, found["after"]["acc"], found["after"]["asr"])
    sweep = csv_table(folder / "u_step_df.csv")
    assert sweep["u"].tolist() == [i / 2 for i in range(21)]
    assert sweep.loc[2, "test_acc"] == found["after"]["acc"]
    stored = torch.load(folder / "defense_result.pt", weights_only=True)["model"]
    weights = torch.load(folder / "weights.pt", weights_only=True)
    assert all(torch.equal(stored[key], value) for key, value in weights.items())


@pytest.mark.parametrize("asked", [(), ("--sweep", "none")])
def test_there_is_no_sweep_unless_it_is_asked_for(registry: Path, record: Path, asked: tuple[str, ...]) -> None:
    found = defend(registry, "--u", "1", *asked, "--json").json
    folder = record / "defense" / "clp_plugin"
    assert {path.name for path in folder.iterdir()} == {
        "outcome.json", "mask.json", "weights.safetensors", "weights.pt", "defense_result.pt", "clp_plugin_df_summary.csv",
    }  # fmt: skip
    summary = csv_table(folder / "clp_plugin_df_summary.csv").iloc[0]
    assert (summary["u"], summary["test_acc"], summary["test_asr"]) == (1, found["after"]["acc"], found["after"]["asr"])


def test_a_sweep_that_cannot_be_made_is_told(registry: Path) -> None:
    assert "--sweep is for clp on a toolbox's record" in defend(registry, "--method", "ft", "--sweep", "1,2").err
    assert "expected FIRST:LAST:STEP" in defend(registry, "--sweep", "wide").err


def test_it_says_what_following_the_tensors_changes(registry: Path, record: Path) -> None:
    said = defend(registry).err
    note = load_outcome(record / "defense" / "clp_plugin" / "outcome.json").log["published_rule"]
    assert note in said
    assert "bn_sum" in note, "TinyNet has one BatchNorm that is fed by a sum"


def test_another_result_is_replaced_only_with_force_and_the_same_run_refreshes_its_own(
    registry: Path, record: Path
) -> None:
    assert defend(registry, "--u", "1").code == 0
    figures = record / "defense" / "clp_plugin" / "visual"
    figures.mkdir()
    (figures / "lips.png").write_text("drawn by the toolbox")
    assert defend(registry, "--u", "1").code == 0
    assert (figures / "lips.png").read_text() == "drawn by the toolbox"
    said = defend(registry, "--u", "2")
    assert said.code == 2
    assert "u=1.0" in said.err
    assert "--force" in said.err
    outcome = record / "defense" / "clp_plugin" / "outcome.json"
    assert load_outcome(outcome).options["u"] == 1
    assert defend(registry, "--u", "2", "--force").code == 0
    assert load_outcome(outcome).options["u"] == 2
    assert not figures.exists(), "they were of the result that is gone"


def test_a_folder_with_other_files_is_never_replaced(registry: Path, record: Path) -> None:
    folder = record / "defense" / "clp_plugin"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    for more in ((), ("--force",)):
        assert "thesis" not in (said := defend(registry, *more)).out
        assert said.code == 2
        assert "did not write" in said.err
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_the_toolboxs_own_defense_is_judged_by_our_evaluator(registry: Path, record: Path) -> None:
    found = defend(
        registry, "--method", "anp", "--impl", "toolbox", "--option", "epochs=3", "--time-limit", "9", "--json"
    ).json
    request = FakeToolbox.asked["request"]
    assert (FakeToolbox.asked["method"], request.options, request.time_limit) == ("anp", {"epochs": 3}, 9.0)
    adapter = FakeToolbox()
    wanted = evaluate(adapter.read_defense(record, "anp").model, adapter.open(record))
    assert found["after"] == wanted.to_json()
    assert found["before"] == evaluate(fake_record().model, fake_record()).to_json()
    assert (found["implementation"], found["protocol"], found["reported"]) == ("fakebench", "oracle", REPORTED)
    outcome = load_outcome(Path(found["outcome"]))
    assert outcome.provenance["toolbox_commit"] == "abc123"
    assert outcome.log["oracle"] == "looks at test images"
    assert outcome.seconds == 7


def test_people_see_the_scripts_lines_the_agreement_and_the_oracle(registry: Path) -> None:
    said = defend(registry, "--method", "anp", "--impl", "toolbox").err
    assert "epoch 1" in said
    assert "oracle: looks at test images" in said
    assert "it said itself: ACC 50.00 %" in said


def test_a_run_that_fails_is_compared_as_failed_until_it_ends_well(
    registry: Path, record: Path, tmp_path: Path
) -> None:
    failing = ("--method", "anp", "--impl", "toolbox", "--option", "do=crash")
    assert (said := defend(registry, *failing)).code == 2
    assert said.err.endswith("error: anp.py failed (exit status 1): IndexError\n")
    assert not (record / "defense").exists()
    failure = load_outcome(record / "clp_plugin_logs" / "anp.json")
    assert (failure.status, failure.implementation, failure.budget) == ("failed", "fakebench", "unknown")
    assert failure.before is not None
    assert failure.before.acc == evaluate(fake_record().model, fake_record()).acc
    defend(registry, "--method", "ft", "--impl", "toolbox")
    compare = ("compare", "--record", record, "--out", tmp_path / "out")
    assert "anp (fakebench) failed on eins: anp.py failed (exit status 1): IndexError" in bench(*compare).err
    assert [row["status"] for row in bench(*compare, "--json").json["rows"]] == ["ok", "failed"]
    defend(registry, "--method", "anp", "--impl", "toolbox", "--reuse")  # an earlier result; the failure remains one
    assert (record / "clp_plugin_logs" / "anp.json").is_file()
    defend(registry, "--method", "anp", "--impl", "toolbox")
    assert [row["status"] for row in bench(*compare, "--json").json["rows"]] == ["ok", "ok"]
    assert not (record / "clp_plugin_logs").exists()


def test_reuse_measures_what_is_there_and_runs_nothing(registry: Path) -> None:
    assert defend(registry, "--method", "anp", "--impl", "toolbox", "--reuse", "--json").json["seconds"] == 7
    assert "request" not in FakeToolbox.asked


def test_attacks_get_our_options_in_their_words(registry: Path) -> None:
    options = (
        "--dataset",
        "cifar10",
        "--target",
        "all",
        "--poison-rate",
        "0.2",
        "--option",
        "pratio=0.3",
        "--fast-cpu",
    )
    common = ("--toolbox", "fakebench", "--registry", registry, "--device", "cpu", "--seed", "5")
    found = bench("attack", "--method", "badnet", "--out", "neu", *options, *common, "--json").json
    request = FakeToolbox.asked["request"]
    assert request.options == {
        "their_dataset": "cifar10",
        "their_target": "all",
        "their_poison_rate": 0.2,
        "pratio": 0.3,
    }
    assert (request.seed, request.fast_cpu) == (5, True)
    assert found["record"].endswith("neu")
    assert found["acc"] == evaluate(fake_record().model, fake_record()).acc


def test_install_notes_the_place_in_the_configuration(registry: Path, tmp_path: Path) -> None:
    found = bench(
        "toolbox", "install", "fakebench", "--destination", tmp_path / "neu", "--registry", registry, "--json"
    ).json
    assert found == {"root": str(tmp_path / "neu"), "config": str(tmp_path / "config.yaml")}
    assert str(tmp_path / "neu") in (tmp_path / "config.yaml").read_text()


def test_check_lists_what_starts_and_how_to_install_the_rest(registry: Path) -> None:
    found = bench("toolbox", "check", "fakebench", "--registry", registry, "--json").json
    assert found["commit"] == "abc123"
    assert found["scripts"][1] == {
        "kind": "attack", "name": "badnet", "problem": "no module cv2", "missing": "opencv-python-headless",
    }  # fmt: skip
    assert found["pip"].endswith("-m pip install opencv-python-headless")
    result = bench("toolbox", "check", "fakebench", "--registry", registry)
    assert "no module cv2" in result.out
    assert "bench toolbox register fakebench" in result.err


def test_register_and_remove_name_the_files(registry: Path) -> None:
    assert "clp_plugin.py" in bench("toolbox", "register", "fakebench", "--registry", registry).err
    assert bench("toolbox", "register", "fakebench", "--remove", "--registry", registry, "--json").json["removed"]
    assert FakeToolbox.asked["remove"] is True


def test_mistakes_are_one_line(registry: Path) -> None:
    more = ("--registry", registry)
    assert "unknown toolbox 'nope'" in refused("toolbox", "check", "nope", *more)
    assert "its adapter OnlyReads lacks check (ChecksScripts)" in refused("toolbox", "check", "reader", *more)
    assert "no record 'zwei'" in defend(registry, record="zwei").err
    assert "expected NAME=VALUE" in defend(registry, "--option", "x").err
    assert "unknown option 'strength'" in defend(registry, "--option", "strength=2").err
    shutil.rmtree(registry.parent / "checkout")


def test_options_that_would_be_ignored_are_refused(registry: Path) -> None:
    toolbox = ("--method", "anp", "--impl", "toolbox")
    assert "--out has no meaning with --impl toolbox" in defend(registry, *toolbox, "--out", registry.parent / "x").err
    assert "--sweep has no meaning" in defend(registry, *toolbox, "--sweep", "none").err
    assert "--time-limit has no meaning without --impl toolbox" in defend(registry, "--time-limit", "9").err
    assert "--reuse has no meaning" in defend(registry, "--reuse").err
    common = ("attack", "--out", "neu", "--registry", registry)
    assert "--fixed-trigger has no meaning for the scripts of fakebench" in refused(
        *common, "--toolbox", "fakebench", "--fixed-trigger"
    )
    assert "--evade has no meaning" in refused(*common, "--toolbox", "fakebench", "--evade", "sigma")
    assert "--fast-cpu has no meaning without --toolbox" in refused(*common, "--fast-cpu")
    assert "request" not in FakeToolbox.asked


def test_printed_json_stays_clean_while_the_script_talks(registry: Path) -> None:
    result = defend(registry, "--method", "anp", "--impl", "toolbox", "--json")
    assert json.load(io.StringIO(result.out))
    assert "epoch 1" not in result.err
