"""``bench defend`` on a tiny record: the JSON contract, the files, and what a mistake gets."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from command_line import DEFEND, METRICS, bench, refused, without

from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.files.checkpoints import load_checkpoint, save_weights
from clp_plugin.masking.apply import load_mask, masked
from clp_plugin.records.opening import open_record
from clp_plugin.store.outcomes import load_outcome


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
    assert "unknown toolbox 'nope'; known: backdoor_toolbox, backdoorbench" in refused(*base, "--toolbox", "nope")
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
