"""The commands end to end on a tiny record: the JSON contract, the files, and what a user's mistake gets."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_records  # noqa: F401 - one thread
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import CORRELATION, DEFEND, METRICS, bench, refused, without

from clp_plugin.cli.app import app
from clp_plugin.cli.console import run
from clp_plugin.errors import ClpError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.files.checkpoints import load_checkpoint, save_weights
from clp_plugin.masking.apply import load_mask, masked
from clp_plugin.records.opening import open_record
from clp_plugin.store.outcomes import load_outcome

ATTACK = ["--dataset", "digits", "--n-train", "300", "--n-test", "60", "--epochs", "1", "--width", "8"]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    found = bench("attack", *ATTACK, "--out", out, "--device", "cpu", "--json").json
    assert list(found) == ["record", "seconds", *METRICS]
    assert found["record"] == str(out)
    assert found["n_clean"] == 60
    return out


def test_attack_stores_a_record_whose_metrics_it_prints(record: Path) -> None:
    opened = open_record(record)
    assert {"record.json", "model.safetensors", "images.safetensors"} <= {path.name for path in record.iterdir()}
    assert opened.provenance.toolbox == "builtin"
    assert opened.provenance.poison_rate == 0.1
    readable = {path.name: path.stat().st_mode & 0o777 for path in record.iterdir() if path.is_file()}
    assert len(set(readable.values())) == 1, readable  # safetensors' own files would be for their owner alone


@pytest.mark.parametrize("name", ["model.safetensors", "images.safetensors"])
def test_repair_of_a_record_never_replaces_its_own_files(record: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).hardlink_to(record / name)
    before = (record / name).read_bytes()
    for place in (record / name, tmp_path / name):
        assert "an input of this run" in refused("scan", record, "--repair", place)
        assert (record / name).read_bytes() == place.read_bytes() == before


def test_same_attack_twice_gives_the_same_model(record: Path, tmp_path: Path) -> None:
    first = bench("list", "records", "--root", record.parent, "--json").json["records"]
    assert [item["path"] for item in first] == [str(record)]
    again = bench("attack", *ATTACK, "--out", tmp_path / "again", "--device", "cpu", "--json")
    assert again.code == 0
    one, two = (json.loads((folder / "record.json").read_text()) for folder in (record, tmp_path / "again"))
    assert one["sha256"] == two["sha256"]


def test_attack_mistakes(record: Path, tmp_path: Path) -> None:
    out = ["attack", "--out", tmp_path / "x"]
    assert "unknown attack 'nope'; known: badnets, blended" in refused(*out, "--method", "nope")
    assert "unknown dataset 'nope'; known: cifar10, digits, folder" in refused(*out, "--dataset", "nope")
    assert "known: preactresnet18, resnet18" in refused(*out, "--model", "nope")
    assert "unknown recipe 'nope'; known: clp-paper, demo, small-network" in refused(*out, "--recipe", "nope")
    assert "give 0 to 9" in refused(*out, "--target", "10")
    assert "or `all` (all-to-all), found 'zero'" in refused(*out, "--target", "zero")
    assert "found 1.5" in refused(*out, "--poison-rate", "1.5")
    assert "device 'nope' cannot be used here" in refused(*out, *ATTACK, "--device", "nope")
    assert "--force to replace it" in refused("attack", *ATTACK, "--out", record)
    assert "data" in refused(*out, "--dataset", "cifar10")
    assert not (tmp_path / "x").exists(), "a command that cannot work leaves nothing behind"


# --- scan -------------------------------------------------------------------------------------------------------------


def test_defend_json_is_the_contract_and_its_files_say_the_same(record: Path, tmp_path: Path) -> None:
    found = bench("defend", "--record", record, "--u", "1", "--out", tmp_path, "--device", "cpu", "--json").json
    assert list(found) == DEFEND
    assert list(found["before"]) == list(found["after"]) == METRICS
    assert found["method"] == "clp"
    assert found["options"] == {
            "u": 1.0, "score": "paper", "norm": "reshaped", "layers": "fused,diagonal", "pairing": "dataflow"
        }  # fmt: skip
    opened = open_record(record)
    assert found["before"] == evaluate(opened.model, opened).to_json()
    for weights in (Path(found["weights"]), tmp_path / "weights.pt"):
        model = open_record(record).model
        model.load_state_dict(load_checkpoint(weights))
        assert evaluate(model, opened).to_json() == found["after"]
    mask = load_mask(Path(found["mask"]))
    assert len(mask) == found["pruned"] > 0
    assert evaluate(masked(opened.model, mask), opened).to_json() == found["after"]
    outcome = load_outcome(Path(found["outcome"]))
    assert outcome.before is not None
    assert outcome.before.model_dump() == found["before"]
    assert (outcome.der, outcome.pruned, outcome.budget) == (found["der"], found["pruned"], "none")
    assert outcome.provenance["sha256"] == opened.provenance.sha256
    assert {p.name for p in tmp_path.iterdir()} == {"outcome.json", "mask.json", "weights.safetensors", "weights.pt"}


def test_defend_by_default_writes_into_the_record_and_leaves_the_attack_alone(record: Path) -> None:
    before = {p.name: p.read_bytes() for p in record.iterdir() if p.is_file()}
    result = bench("defend", "--record", record, "--device", "cpu")
    assert result.code == 0
    assert "ACC %" in result.out
    assert "DER" in result.err
    folder = record / "defense" / "clp" / "default-seed0"
    assert (folder / "outcome.json").is_file()
    assert {p.name: p.read_bytes() for p in record.iterdir() if p.is_file()} == before


def test_defend_twice_gives_the_same_numbers(record: Path, tmp_path: Path) -> None:
    command = ["defend", "--record", record, "--u", "0.5", "--out", tmp_path, "--json"]
    first, second = (bench(*command).json for _ in range(2))
    assert without(first, "seconds") == without(second, "seconds")


def test_an_oracles_numbers_are_marked_wherever_they_are_shown(record: Path, tmp_path: Path) -> None:
    command = ["defend", "--record", record, "--protocol", "oracle", "--device", "cpu"]
    shown = bench(*command)
    assert shown.code == 0
    assert "after clp (oracle)" in shown.out
    folder = record / "defense" / "clp" / "oracle-seed0"
    assert load_outcome(folder / "outcome.json").protocol == "oracle"
    assert bench(*command, "--json", "--out", tmp_path).json["protocol"] == "oracle"
    assert "ft chooses no parameter by results" in refused(*command, "--method", "ft", "--out", tmp_path / "x")


def test_a_budget_that_cannot_be_given_is_told(record: Path, tmp_path: Path) -> None:
    base = ["defend", "--record", record, "--device", "cpu", "--out", tmp_path / "x", "--method"]
    assert "clp sees no images; leave out --n-budget" in refused(*base, "clp", "--n-budget", "5")
    assert "holds 3 benign images; give 2 to 3, found 4" in refused(*base, "ft", "--n-budget", "4")
    assert not (tmp_path / "x").exists()


def test_a_scale_says_what_it_changed(record: Path, tmp_path: Path) -> None:
    base = ["defend", "--record", record, "--device", "cpu", "--scale", "small", "--method"]
    assert "scale small: changes nothing for clp" in bench(*base, "clp", "--out", tmp_path / "a").err
    found = bench(*base, "nad", "--option", "epochs=1", "--n-budget", "3", "--out", tmp_path / "b")
    assert "scale small: teacher_epochs 10 -> 5\n" in found.err  # epochs was given, not scaled


def test_defend_options_reach_the_method(record: Path, tmp_path: Path) -> None:
    base = ["defend", "--record", record, "--u", "1", "--out", tmp_path, "--json"]
    relative = bench(*base, "--score", "relative", "--norm", "exact", "--seed", "5").json
    assert relative["options"] == {
        "u": 1.0, "score": "relative", "norm": "exact", "layers": "fused,diagonal", "pairing": "dataflow"
    }  # fmt: skip
    assert load_outcome(tmp_path / "outcome.json").seed == 5
    assert "--force" in refused(*base, "--parity")
    assert bench(*base, "--parity", "--force").json["options"]["pairing"] == "registration"


def test_defense_of_a_third_party_runs_end_to_end(record: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent('''
        from dataclasses import dataclass
        import torch
        from clp_plugin.defenses.base import Repaired

        @dataclass
        class Recalibrate:
            """Estimate BatchNorm statistics on the benign images, and add noise."""
            rounds: int = 1
            budget = "benign"

            def repair(self, model, budget, *, seed, progress=None):
                assert len(budget.benign) == 3 and budget.num_classes == 10
                with torch.no_grad():
                    model.train()
                    for _ in range(self.rounds):
                        for batch in budget.benign.batches(3):
                            model(batch)
                    model.linear.bias += torch.randn(10)
                return Repaired(model, log={"rounds": self.rounds})
        ''')
    )
    registry = tmp_path / "mine.yaml"
    registry.write_text(
        "defenses:\n  recalibrate: {object: 'mine.py:Recalibrate', summary: statistics, budget: benign, "
        "defaults: {rounds: 2}}\n"
    )
    listed = bench("list", "defenses", "--registry", registry, "--json").json["defenses"]
    assert [item["name"] for item in listed][-1] == "recalibrate"
    base = ["defend", "--method", "recalibrate", "--registry", registry, "--record", record, "--out", tmp_path / "out"]
    base.append("--force")
    found, biases = [], []
    for seed in (0, 0, 1):
        found.append(bench(*base, "--seed", seed, "--json").json)
        biases.append(load_checkpoint(Path(found[-1]["weights"]))["linear.bias"])
    assert list(found[0]) == DEFEND
    assert (found[0]["pruned"], found[0]["mask"], found[0]["options"]) == (None, None, {"rounds": 2})
    assert without(found[0], "seconds") == without(found[1], "seconds")
    assert torch.equal(biases[0], biases[1])
    assert not torch.equal(biases[0], biases[2])
    outcome = load_outcome(tmp_path / "out" / "outcome.json")
    assert (outcome.budget, outcome.log, outcome.method) == ("benign:3", {"rounds": 2}, "recalibrate")
    shown = bench(*base)
    assert shown.code == 0
    assert "mask.json" not in shown.err
    assert "unknown option 'u'; known: rounds" in refused(*base, "--u", "3")


def test_defend_mistakes(record: Path, tmp_path: Path) -> None:
    base = ["defend", "--record", record]
    assert "unknown defense 'nope'; known: anp, bnp, clp" in refused(*base, "--method", "nope")
    assert "unknown toolbox 'nope'; known: backdoorbench, builtin" in refused(*base, "--toolbox", "nope")
    assert "u must be 0 or more" in refused(*base, "--u", "-1")
    assert "parity mode has only" in refused(*base, "--parity", "--norm", "exact")
    assert "cannot be used here" in refused(*base, "--device", "cuda:99")
    assert "no.yaml: No such file" in refused(*base, "--registry", tmp_path / "no.yaml")
    assert "there is no record at" in refused("defend", "--record", tmp_path / "no")
    assert "is an empty folder" in refused("defend", "--record", tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "not a record of a known toolbox" in refused("defend", "--record", tmp_path)
    (tmp_path / "bad.yaml").write_text("defences: {}\n")
    assert "unknown section 'defences'" in refused(*base, "--registry", tmp_path / "bad.yaml")


def test_weights_that_changed_after_the_attack_are_refused(record: Path, tmp_path: Path) -> None:
    for path in record.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_weights(
        open_record(record).model.state_dict() | {"linear.bias": torch.ones(10)}, tmp_path / "model.safetensors"
    )
    assert "expected SHA-256" in refused("defend", "--record", tmp_path)


# --- correlate and sweep ----------------------------------------------------------------------------------------------


def test_correlate_json_is_the_contract_and_its_files_say_the_same(record: Path, tmp_path: Path) -> None:
    found = bench("correlate", "--record", record, "--out", tmp_path, "--device", "cpu", "--json").json
    assert list(found) == ["layers", "pooled"]
    assert [list(layer) for layer in (*found["layers"], found["pooled"])] == [CORRELATION] * (len(found["layers"]) + 1)
    names = dict(open_record(record).model.named_modules())
    assert all(layer["name"] in names for layer in found["layers"])
    assert found["pooled"]["name"] == "pooled"
    assert found["pooled"]["n"] == sum(layer["n"] for layer in found["layers"][:-1])  # the last is the head
    rows = pd.read_csv(tmp_path / "tac.csv")
    assert list(rows.columns) == ["layer", "channel", "sigma", "tac", "pruned"]
    for layer in found["layers"]:
        mine = rows[rows["layer"] == layer["name"]]
        assert layer["pearson"] == pytest.approx(np.corrcoef(mine["sigma"], mine["tac"])[0, 1], abs=1e-6)
    table = pd.read_csv(tmp_path / "correlation.csv")
    assert list(table.columns) == CORRELATION
    assert len(table) == len(found["layers"]) + 1
    names_written = {"tac.csv", "correlation.csv", "uclc_tac.png", "uclc_tac.pdf"}
    assert {p.name for p in tmp_path.iterdir()} == names_written
    again = bench("correlate", "--record", record, "--out", tmp_path, "--device", "cpu", "--json").json
    assert again == found


def test_correlate_by_the_other_norm_is_kept_apart(record: Path) -> None:
    result = bench("correlate", "--record", record, "--tac-norm", "l1", "--max-images", "20")
    assert result.code == 0
    assert "Spearman" in result.out
    assert (record / "analysis" / "correlate-paper-reshaped-l1" / "tac.csv").is_file()


def test_correlate_mistakes(record: Path) -> None:
    base = ["correlate", "--record", record]
    assert "expected l2 or l1, found 'l3'" in refused(*base, "--tac-norm", "l3")
    assert "--max-images: expected at least 1, found 0" in refused(*base, "--max-images", "0")
    assert "u must be 0 or more" in refused(*base, "--u", "-2")


def test_sweep_json_is_the_contract_and_its_files_say_the_same(record: Path, tmp_path: Path) -> None:
    found = bench("sweep", "--record", record, "--u", "0:2:0.5", "--out", tmp_path, "--device", "cpu", "--json").json
    assert list(found) == ["rows"]
    assert [list(row) for row in found["rows"]] == [
        ["u", "pruned", "acc", "asr", "ra", "clean_loss", "triggered_loss"]
    ] * 5
    assert [row["u"] for row in found["rows"]] == [0, 0.5, 1, 1.5, 2]
    pruned = [row["pruned"] for row in found["rows"]]
    assert pruned == sorted(pruned, reverse=True)
    assert pd.read_csv(tmp_path / "sweep.csv").to_dict("records") == found["rows"]
    assert {p.name for p in tmp_path.iterdir()} == {"sweep.csv", "sweep.png", "sweep.pdf"}
    defended = bench("defend", "--record", record, "--u", "1", "--out", tmp_path / "d", "--json").json
    row = found["rows"][2]
    assert (row["pruned"], row["acc"], row["asr"], row["ra"]) == (
        defended["pruned"], defended["after"]["acc"], defended["after"]["asr"], defended["after"]["ra"],
    )  # fmt: skip


def test_sweep_for_people_says_that_it_looks_at_test_images(record: Path) -> None:
    result = bench("sweep", "--record", record, "--u", "1,3", "--parity")
    assert result.code == 0
    assert "oracle" in result.out
    assert (record / "analysis" / "sweep-parity" / "sweep.csv").is_file()


def test_sweep_mistakes(record: Path) -> None:
    for text in ("3:1:1", "a", "0:1:0"):
        assert "expected FIRST:LAST:STEP" in refused("sweep", "--record", record, "--u", text)
    assert "must be 0 or more" in refused("sweep", "--record", record, "--u", "-1,2")
    assert "more than 10000 values" in refused("sweep", "--record", record, "--u", "0:1:1e-7")


# --- list and demo ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "names"), [("defenses", ["clp", "dhbe"]), ("attacks", ["badnets", "ssba"]), ("toolboxes", ["builtin"])]
)
def test_list_shows_what_is_on_offer(what: str, names: list[str]) -> None:
    found = bench("list", what, "--json").json
    assert list(found) == [what]
    assert set(names) <= {item["name"] for item in found[what]}
    for item in found[what]:
        assert {"name", "object", "summary", "citation", "budget", "defaults", "dataset_defaults", "origin"} <= set(
            item
        )
    shown = bench("list", what)
    assert shown.code == 0
    assert all(name in shown.out for name in names)


def test_list_records_shows_complete_and_unfinished_ones(record: Path, tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "unfinished.json").write_text("{}")
    (tmp_path / "live").symlink_to(record)
    found = bench("list", "records", "--root", tmp_path, "--json").json["records"]
    assert [list(item) for item in found] == [["path", "toolbox", "summary", "complete"]] * 2
    assert [item["complete"] for item in found] == [False, True]
    assert "incomplete" in bench("list", "records", "--root", tmp_path).out
    assert "there is no folder" in refused("list", "records", "--root", tmp_path / "no")


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from clp_plugin.adapters.builtin import toolbox
    from clp_plugin.cli.commands import demo

    preset = toolbox.PRESETS["demo"]
    small_one = replace(
        preset, n_train=300, n_test=60, recipe=replace(preset.recipe, epochs=1),
        model_options={"width": 8, "blocks": (1, 1)},
    )  # fmt: skip
    monkeypatch.setattr(toolbox, "PRESETS", {"demo": small_one})
    monkeypatch.setattr(demo, "SWEEP", "0:4:2")
    return


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_demo")
def test_demo_goes_all_the_way_and_says_what_happened(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    found = bench("demo", "--out", out, "--device", "cpu", "--json").json
    assert list(found) == [*DEFEND, "rows", "pooled", "seconds_total"]
    assert [row["u"] for row in found["rows"]] == [0, 2, 4]
    figures = {p.name for p in (out / "figures").iterdir()}
    drawn = {f"{name}.{kind}" for name in ("uclc_tac", "sweep", "scores", "examples") for kind in ("png", "pdf")}
    assert figures == drawn | {"tac.csv", "correlation.csv", "sweep.csv"}
    again = bench("demo", "--out", out, "--device", "cpu")
    assert again.code == 0
    assert "using the attacked model" in again.err
    assert "CLP removed the backdoor" in again.err or "CLP did NOT do what the paper says" in again.err
    repeated = bench("demo", "--out", out, "--device", "cpu", "--json").json
    assert without(repeated, "seconds", "seconds_total") == without(found, "seconds", "seconds_total")


# --- the program ------------------------------------------------------------------------------------------------------


def program(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clp_plugin", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_is_quick_and_does_not_import_torch() -> None:
    code = (
        "import sys; from clp_plugin.cli.app import app; from clp_plugin.cli.console import run; "
        "codes = [run(app, ['--help']), run(app, ['defend', '--help']), run(app, ['list', 'defenses'])]; "
        "sys.exit(repr((codes, sorted({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "clp_plugin", "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # 0.3 s on a quiet machine
    for command in ("demo", "list", "attack", "scan", "defend", "correlate", "sweep"):
        assert command in done.stdout
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "([0, 0, 0], [])"


def test_a_mistake_is_one_line_and_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    command = ["list", "records", "--root", tmp_path / "no"]
    plain = program(*command)
    assert plain.returncode == 2
    assert plain.stdout == ""
    assert plain.stderr.count("\n") == 1
    assert plain.stderr.startswith("error: cannot list records")
    debug = program("--debug", *command)
    assert debug.returncode not in (0, 2)
    assert "Traceback" in debug.stderr
    assert "RecordError: cannot list records" in debug.stderr


def test_debug_raises_the_error_itself(tmp_path: Path) -> None:
    with pytest.raises(ClpError, match="there is no record"):
        run(app, ["defend", "--record", str(tmp_path / "no"), "--debug"])


@pytest.mark.parametrize("argv", [["frobnicate"], ["defend"], ["defend", "--record"], ["list", "nope"], ["scan"]])
def test_wrong_usage_is_exit_code_2_and_says_what_is_wrong(argv: list[str]) -> None:
    result = bench(*argv)
    assert result.code == 2
    assert result.out == ""
    assert "Error" in result.err
    assert "Traceback" not in result.err


def test_unexpected_error_is_exit_code_1_and_points_to_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("clp_plugin.cli.commands.listing.list_folder", fail)
    result = bench("list", "records")
    assert result.code == 1
    assert "internal error: ZeroDivisionError: boom" in result.err
    assert "--debug" in result.err


def test_stopping_by_hand_is_exit_code_130_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clp_plugin.cli.commands.listing.list_folder", stop)
    result = bench("list", "records")
    assert result.code == 130
    assert "goes on where it was when the same command is given again" in result.err


@pytest.mark.slow
def test_command_as_typed_is_in_the_outcome(record: Path, tmp_path: Path) -> None:
    done = program("defend", "--record", record, "--out", tmp_path / "a b", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "clp"
    command = load_outcome(tmp_path / "a b" / "outcome.json").command
    assert command.startswith("bench defend --record")
    assert f"'{tmp_path / 'a b'}'" in command
