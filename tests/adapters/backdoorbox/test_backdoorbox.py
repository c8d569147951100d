"""BackdoorBox: what its files do not say is asked for or taken from the live attack, and CLP fits its habit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from boxed_attacks import BadNets, experiment
from command_line import bench, refused
from fake_checkout import content
from own_parts import TARGET, OwnParts, own_parts

from clp_plugin import evaluate, open_record
from clp_plugin.adapters.backdoorbox import CLP, live_record, save_record
from clp_plugin.errors import CheckpointError, ClpError, ConfigError, RecordError


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path / "data"))


@pytest.fixture
def parts(tmp_path: Path) -> OwnParts:
    return own_parts(tmp_path / "parts")


def described(folder: Path, parts: OwnParts, *more: object) -> object:
    """``bench record`` on an experiment."""
    given = (
        "record", "--toolbox", "backdoorbox", "--checkpoint", folder / "ckpt_epoch_10.pth", "--arch", parts.arch,
        "--images", parts.images, "--trigger", parts.trigger, "--at", "bottom-right", "--out", folder, *more,
    )  # fmt: skip
    return bench(*given, "--json").json


def test_an_experiment_becomes_a_record_by_one_file_beside_its_checkpoint(tmp_path: Path, parts: OwnParts) -> None:
    folder = experiment(tmp_path / "experiments", parts)
    before = content(folder)
    described(folder, parts, "--target", TARGET, "--attack", "BadNets", "--dataset", "cifar10", "--poison-rate", "0.1")
    after = content(folder)
    assert {name: after[name] for name in before} == before
    assert {str(name) for name in after.keys() - before.keys()} == {"backdoorbox.json", "trigger.png", "trigger.pdf"}
    record = open_record(folder)
    found = evaluate(record.model, record)
    assert (found.acc, found.asr, found.n_clean) == (1, 1, 20)
    origin = record.provenance
    assert (origin.toolbox, origin.attack, origin.dataset, origin.poison_rate) == (
        "backdoorbox", "BadNets", "cifar10", 0.1,
    )  # fmt: skip
    moved = folder.rename(tmp_path / "moved")
    assert evaluate(open_record(moved).model, open_record(moved)) == found


def test_an_experiment_that_nobody_described_says_how(tmp_path: Path, parts: OwnParts) -> None:
    folder = experiment(tmp_path / "experiments", parts)
    said = refused("defend", "--record", folder)
    assert "backdoorbox.json is missing" in said
    assert "bench record --toolbox backdoorbox" in said
    [listed] = bench("list", "records", "--root", folder.parent, "--json").json["records"]
    assert (listed["toolbox"], listed["complete"]) == ("backdoorbox", False)
    assert listed["summary"] == "ckpt_epoch_10.pth; backdoorbox.json is missing"


@pytest.mark.parametrize(
    ("more", "message"), [((), "expected --target"), (("--target", "1", "--copy"), "give another with --out")]
)
def test_what_is_not_said_is_asked_for(tmp_path: Path, parts: OwnParts, more: tuple[str, ...], message: str) -> None:
    folder = experiment(tmp_path / "experiments", parts)
    given = (
        "record", "--toolbox", "backdoorbox", "--checkpoint", folder / "ckpt_epoch_10.pth", "--arch", parts.arch, "--images",
        parts.images, "--trigger", parts.trigger, "--at", "bottom-right", "--out", folder, *more,
    )  # fmt: skip
    assert message in refused(*given)
    assert not (folder / "backdoorbox.json").exists()


def test_a_toolbox_whose_files_say_all_needs_no_description(tmp_path: Path, parts: OwnParts) -> None:
    given = ("--checkpoint", parts.checkpoint, "--images", parts.images, "--out", tmp_path / "out")
    assert "need no description" in refused("record", "--toolbox", "builtin", *given)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_live_attack_describes_itself_and_its_numbers_are_those_of_the_folder(
    tmp_path: Path, parts: OwnParts, prefix: str
) -> None:
    attack = BadNets(parts)
    folder = save_record(attack, experiment(tmp_path, parts, prefix=prefix), arch=parts.arch, dataset="cifar10")
    stored, live = open_record(folder), live_record(attack)
    assert evaluate(stored.model, stored) == evaluate(live.model, live)
    assert evaluate(live.model, live).asr == 1
    for record in (stored, live):
        assert record.target.target == TARGET
        assert (record.provenance.attack, record.provenance.poison_rate) == ("BadNets", 0.25)
    assert json.loads((folder / "backdoorbox.json").read_text())["network"]["checkpoint"]["path"] == "ckpt_epoch_10.pth"


def test_a_checkpoint_of_another_state_of_the_network_is_refused(tmp_path: Path, parts: OwnParts) -> None:
    attack = BadNets(parts)
    folder = experiment(tmp_path, parts)
    with torch.no_grad():
        next(attack.model.parameters()).add_(1)
    with pytest.raises(RecordError, match="not the network that the attack holds now"):
        save_record(attack, folder, arch=parts.arch)
    assert not (folder / "backdoorbox.json").exists()
    with pytest.raises(RecordError, match=r"ckpt_epoch_N\.pth, found none"):
        save_record(attack, tmp_path / "nowhere", arch=parts.arch)


def test_a_live_attack_that_cannot_be_judged_as_it_is_says_why(parts: OwnParts) -> None:
    normalizing = BadNets(parts)
    normalizing.test_dataset.transform = lambda image: (image - 0.5) / 0.25
    with pytest.raises(RecordError, match="whole grey levels"):
        live_record(normalizing)
    filtered = BadNets(parts)
    filtered.poisoned_test_dataset.pixels = filtered.poisoned_test_dataset.pixels[:-1]
    with pytest.raises(RecordError, match="ASR_NoTarget"):
        live_record(filtered)
    strange = BadNets(parts)
    strange.poisoned_test_dataset.targets = list(np.arange(20) % 3)
    with pytest.raises(RecordError, match="neither one class nor the true ones shifted"):
        live_record(strange)
    shifted = BadNets(parts)
    shifted.poisoned_test_dataset.targets = list((parts.labels + 1) % 4)
    assert live_record(shifted).target.wanted(np.array([3])) == 0


def test_clp_in_its_habit_prunes_what_bench_defend_prunes(tmp_path: Path, parts: OwnParts) -> None:
    attack = BadNets(parts)
    folder = save_record(attack, experiment(tmp_path, parts), arch=parts.arch)
    found = bench("defend", "--record", folder, "--u", "1", "--out", tmp_path / "out", "--json").json
    wrapped = torch.nn.DataParallel(attack.get_model())
    defense = CLP(wrapped, attack.test_dataset, u=1)
    defense.repair({"device": "CPU"})
    assert defense.get_model() is wrapped
    assert defense.mask is not None
    assert len(defense.mask) == found["pruned"] > 0
    repaired = torch.load(tmp_path / "out" / "weights.pt", weights_only=True)
    own = wrapped.module.state_dict()
    assert all(torch.equal(own[key], repaired[key]) for key in own)


def test_clp_loads_test_model_strictly_and_asks_for_what_it_needs(tmp_path: Path, parts: OwnParts) -> None:
    attack = BadNets(parts)
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    defense = CLP(attack.get_model(), input_shape=(3, 8, 8))
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        defense.repair({"test_model": str(tmp_path / "other.pth")})
    with pytest.raises(ConfigError, match="test_dataset"):
        defense.test({"metric": "BA"})
    with pytest.raises(ConfigError, match="input_shape"):
        CLP(attack.get_model())
    with pytest.raises(ClpError, match="unknown option"):
        CLP(attack.get_model(), attack.test_dataset, v=1).repair()
