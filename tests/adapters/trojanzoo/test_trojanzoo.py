"""TrojanZoo: a script of its own finds our methods in its registry, and its numbers are ours."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_line import bench, refused
from zoo_scripts import run_script

from clp_plugin.store.outcomes import load_outcome

needs_trojanzoo = pytest.mark.skipif(find_spec("trojanvision") is None, reason="needs the extra trojanzoo")

DEFEND = """
with torch.no_grad():  # statistics that no layer shares with another, so that something stands out
    for number, module in enumerate(model._model.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.5)
            module.weight[number % len(module.weight)] = 6.0
attack.save()
defense = trojanvision.defenses.create(dataset=dataset, model=model, attack=attack, **given)
before = model._validate(verbose=False)[0]
defense.detect(epochs=1)
json.dump({"before": before, "after": model._validate(verbose=False)[0]}, open("its-own.json", "w"))
"""


def registered(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The script, run as a user does it, with our methods in the registry."""
    return run_script(folder, DEFEND, "--model", "vgg11_bn_comp", *more)


@needs_trojanzoo
@pytest.mark.slow
def test_its_own_script_runs_clp_and_its_accuracy_is_ours(tmp_path: Path) -> None:
    done = registered(tmp_path, "--defense", "clp", "--clp_u", "1.5")
    assert done.returncode == 0, done.stdout + done.stderr
    [stored] = tmp_path.rglob("clp/*.json")
    outcome, its_own = load_outcome(stored), json.loads((tmp_path / "its-own.json").read_text())
    assert outcome.before is not None
    assert outcome.after is not None
    assert (100 * (outcome.before.acc or 0), 100 * (outcome.after.acc or 0)) == pytest.approx(
        (its_own["before"], its_own["after"]), abs=1e-3
    )
    assert (outcome.method, outcome.options["u"], outcome.provenance["toolbox"]) == ("clp", 1.5, "trojanzoo")
    assert outcome.after.n_triggered == 30  # the ten images of the target class do not count
    assert outcome.pruned
    weights = torch.load(stored.with_suffix(".pth"), weights_only=True)
    attacked = torch.load(next(tmp_path.rglob("badnet/*.pth")), weights_only=True)
    assert weights.keys() == attacked.keys()
    changed = {name for name in weights if not torch.equal(weights[name], attacked[name])}
    assert changed == {f"{layer}.{kind}" for layer in outcome.mask or {} for kind in ("weight", "bias")} & changed
    assert changed
    shown = bench("leaderboard", "show", tmp_path / "data", "--json").json
    assert [(cell["method"], cell["after_acc"]) for cell in shown["cells"]] == [("clp", outcome.after.acc)]


@needs_trojanzoo
@pytest.mark.slow
def test_a_method_that_tunes_on_benign_images_runs_too(tmp_path: Path) -> None:
    done = registered(tmp_path, "--defense", "ft", "--ft_epochs", "1", "--ft_scale", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    [stored] = tmp_path.rglob("ft/*.json")
    assert (load_outcome(stored).budget, load_outcome(stored).options["epochs"]) == ("benign:40", 1)


@needs_trojanzoo
@pytest.mark.slow
def test_a_wrong_option_is_told_in_one_line(tmp_path: Path) -> None:
    done = registered(tmp_path, "--defense", "clp", "--clp_u", "many")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "u" in done.stderr.splitlines()[-1]


@needs_trojanzoo
@pytest.mark.slow
def test_what_is_in_its_registry_is_told_with_its_version() -> None:
    command = [sys.executable, "-m", "clp_plugin", "toolbox", "check", "trojanzoo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    problems = {(each["kind"], each["name"]): each["problem"] for each in found["scripts"]}
    assert problems["attack", "badnet"] == problems["defense", "fine_pruning"] == ""
    assert "Pascal VOC" in problems["attack", "refool"]
    assert version("trojanzoo") in found["found_by"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/script.py"], "no/such/script.py: expected a script of TrojanZoo"),
        ([__file__, "--defense=clp"], "TrojanZoo does not understand the sign =; give --defense clp"),
    ],
)
def test_mistakes_are_told_before_the_toolbox_is_imported(arguments: list[str], message: str) -> None:
    assert message in refused("toolbox", "register", "trojanzoo", "--", *arguments)


def test_its_stored_attacks_are_known_and_the_way_to_repair_them_is_told(tmp_path: Path) -> None:
    for end in ("pth", "npy", "png"):
        (tmp_path / "badnet").mkdir(exist_ok=True)
        (tmp_path / "badnet" / f"square_white_tar0_alpha1.00_mark(6,6).{end}").write_bytes(b"")
    said = refused("defend", "--record", tmp_path / "badnet")
    assert "whose files do not say where the trigger is" in said
    assert "bench toolbox register trojanzoo" in said


def test_a_toolbox_that_has_no_registry_in_memory_says_so() -> None:
    assert "RunsScripts" in refused("toolbox", "register", "backdoorbench", "--", "script.py")
