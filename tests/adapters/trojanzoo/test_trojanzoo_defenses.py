"""TrojanZoo's own defenses on its records, and the whole way: its attack, our CLP in its script, and the same on the record."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_line import bench, refused
from zoo_attacks import images, stored
from zoo_scripts import run_script

from clp_plugin.store.outcomes import load_outcome

needs_trojanzoo = pytest.mark.skipif(find_spec("trojanvision") is None, reason="needs the extra trojanzoo")
PLACE = ("--device", "cpu", "--json")

ATTACK = """
pixels = dataset.pixels("valid").to(torch.uint8).numpy()
np.savez("test.npz", x=pixels, y=np.arange(len(pixels)) % 4)
for module in model._model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = 0.5  # the statistics of a training of so few batches
trainer = trojanvision.trainer.create(dataset=dataset, model=model, **given)
attack.attack(**trainer)
attack.save()
"""
DEFEND = """
defense = trojanvision.defenses.create(dataset=dataset, model=model, attack=attack, **given)
defense.detect()
json.dump(attack.validate_fn(threshold=float("inf")), open("its-own.json", "w"))
"""


def record(attack: Path, root: Path, *more: object) -> Path:
    done = bench(
        "record", "--toolbox", "trojanzoo", "--checkpoint", attack, "--images", root / "test.npz", "--out", root / "record",
        *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    return root / "record"


@needs_trojanzoo
@pytest.mark.slow
def test_an_attack_of_its_own_is_repaired_by_its_script_and_on_its_record_with_the_same_numbers(tmp_path: Path) -> None:
    network = ("--model", "resnet18_comp")
    training = ("--epochs", "4", "--lr", "0.01", "--poison_percent", "0.2", "--batch_size", "10", "--defense", "clp")
    done = run_script(tmp_path, ATTACK, *network, *training)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_script(tmp_path, DEFEND, *network, "--defense", "clp", "--clp_u", "2.5")
    assert done.returncode == 0, done.stdout + done.stderr
    [stored_outcome] = tmp_path.rglob("clp/*.json")
    [attacked] = tmp_path.rglob("badnet/*.pth")
    ours = record(attacked, tmp_path, "--at", "0,28", "--mean", "0", "--std", "1")
    found = bench("defend", "--record", ours, "--u", "2.5", *PLACE).json
    theirs, mine = load_outcome(stored_outcome), load_outcome(Path(found["outcome"]))
    assert mine.pruned
    assert theirs.mask == mine.mask
    assert (theirs.before, theirs.after) == (mine.before, mine.after)
    asr_all, acc = json.loads((tmp_path / "its-own.json").read_text())
    assert mine.after is not None
    assert acc / 100 == pytest.approx(mine.after.acc, abs=1e-6)
    # It counts the ten images of the target class too; of the thirty others ours says how many are taken for it.
    taken = round(asr_all / 100 * 40)
    assert 0 <= taken - round((mine.after.asr or 0) * 30) <= 10
    shown = bench("leaderboard", "show", tmp_path, "--json").json
    assert [cell["after_acc"] for cell in shown["cells"]] == [mine.after.acc] * len(shown["cells"])


@needs_trojanzoo
@pytest.mark.slow
def test_its_pruning_is_read_back_from_the_live_network_and_its_own_numbers_are_ours(tmp_path: Path) -> None:
    attack = stored(tmp_path)
    images(tmp_path)
    folder = record(attack, tmp_path, "--at", "5,7", "--n-benign", "4")
    given = ("defend", "--record", folder, "--impl", "toolbox", "--method", "fine_pruning", *PLACE)
    found = bench(*given, "--option", "epochs=1", "--option", "batch_size=4").json
    assert found["budget"] == "benign:4"
    assert found["protocol"] == "defender"
    told = found["reported"]
    assert (told["acc"], told["asr"]) == pytest.approx((found["after"]["acc"], found["after"]["asr"]), abs=1e-6)
    assert "asr_all" in told
    weights = torch.load(folder / "defense" / "fine_pruning" / "repaired.pt", weights_only=True)
    assert weights.keys() == torch.load(attack, weights_only=True).keys()
    silent = weights["features.layer4.1.conv2.weight"].flatten(1).abs().sum(1) == 0
    assert int(silent.sum()) >= int(0.95 * 512) - 10  # it may stop ten channels before its ratio, by accuracy
    assert bench(*given, "--reuse").json["after"] == found["after"]
    assert "holds an earlier result" in refused(*given)


@needs_trojanzoo
def test_what_it_cannot_repair_is_refused_before_it_starts(tmp_path: Path) -> None:
    images(tmp_path)
    folder = record(stored(tmp_path), tmp_path, "--at", "0,0")
    given = ("defend", "--record", folder, "--impl", "toolbox", "--method")
    assert "fine_pruning needs benign images" in refused(*given, "fine_pruning")
    assert "TrojanZoo: unknown defense" in refused(*given, "neural_cleanse")
    assert "TrojanZoo's adv_train: unknown option" in refused(*given, "adv_train", "--option", "prune_ratio=1")
    assert not (folder / "defense").exists()
