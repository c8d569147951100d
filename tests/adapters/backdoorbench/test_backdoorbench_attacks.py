"""The toolbox's own attacks: what they are given, what becomes of their records, and what is refused before they start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_checkout import but, content, run_defense, write
from torchvision.datasets.utils import check_integrity

from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.errors import ConfigError, RecordError, ToolboxError
from clp_plugin.records.adapter import ChecksAttacks, require
from clp_plugin.records.exchange import RunRequest

pytestmark = pytest.mark.usefixtures("temporary")


def attack(root: Path, name: str = "neu", method: str = "blended", *, force: bool = False, **options: object) -> Path:
    with BackdoorBench().attacked(name, method, RunRequest(options, root=root, force=force, seed=5)) as path:
        return path


def check(root: Path, name: str = "neu", method: str = "blended", **options: object) -> None:
    require(BackdoorBench(), ChecksAttacks, toolbox="backdoorbench").check_attack(
        name, method, RunRequest(options, root=root)
    )


def test_an_attack_that_can_work_passes_the_check_and_nothing_is_run_or_written(root: Path, record: Path) -> None:
    before = content(root)
    check(root, alpha=0.2)
    with pytest.raises(ConfigError, match="exists already"):
        check(root, "eins", alpha=0.2)
    assert content(root) == before


def test_images_that_a_script_would_replace_by_a_download_are_refused_before_it_starts(
    root: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", check_integrity)
    before = content(root)
    for refused in (lambda: attack(root, alpha=0.2), lambda: check(root, alpha=0.2), lambda: run_defense(record)):
        with pytest.raises(
            RecordError,
            match=r"data/cifar10: .* not take the files there .*; put the published files there$",
        ):
            refused()
    assert content(root) == before


def test_an_attacks_record_appears_whole(root: Path, record: Path, temporary: Path) -> None:
    before = content(root)
    made = attack(root, alpha=0.2, **BackdoorBench().attack_options({"poison_rate": 0.1, "target": 2, "epochs": 1}))
    assert made == root / "record" / "neu"
    after = content(root)
    assert but(after, "record/neu/", "record/clp_plugin_logs/") == before
    assert {name for name in after if name.startswith("record/neu/")} == {
        "record/neu/attack_result.pt", "record/neu/clp_plugin_run.log", "record/neu/seen.json",
    }  # fmt: skip
    found = json.loads((made / "seen.json").read_text())
    wanted = {
        "pratio": 0.1, "attack_target": 2, "epochs": 1, "alpha": 0.2, "dataset": "cifar10", "device": "cpu",
        "random_seed": 5, "num_workers": 0, "amp": "False", "yaml_path": "./config/attack/prototype/cifar10.yaml",
    }  # fmt: skip
    assert {name: found["args"][name] for name in wanted} == wanted
    assert found["data"] == ["cifar-10-batches-py"]
    assert found["records"] == ["neu"], "no other record is within its reach"
    assert list(temporary.iterdir()) == []


def test_an_attack_finds_its_own_settings_however_their_folder_is_spelled(root: Path, record: Path) -> None:
    script = (root / "attack" / "blended.py").read_text()
    declared = 'parser.add_argument("--bd_yaml_path", type=str, default="./config/attack/wrong.yaml")\n'
    write(root / "attack" / "ftrojann.py", script.replace("args = parser", f"{declared}args = parser"))
    write(root / "config" / "attack" / "ftrojannn" / "default.yaml", "attack: ftrojann\n")
    made = attack(root, method="ftrojann", alpha=0.2)
    args = json.loads((made / "seen.json").read_text())["args"]
    assert args["bd_yaml_path"] == "./config/attack/ftrojannn/default.yaml"


def test_an_attack_replaces_a_record_only_with_force_and_only_when_it_ends_well(root: Path, record: Path) -> None:
    before = content(root)
    with pytest.raises(ConfigError, match="exists already; choose another name, or give --force"):
        attack(root, "eins", alpha=0.2)
    for alpha, said in ((0, "ValueError: alpha must not be 0"), (1, r"ended without writing attack_result\.pt")):
        with pytest.raises(ToolboxError, match=said):
            attack(root, "eins", force=True, alpha=alpha)
    assert but(content(root), "record/clp_plugin_logs/") == before
    attack(root, "eins", force=True, alpha=0.2)
    assert not (record / "bd_test_dataset").exists()
    assert (record / "attack_result.pt").read_text() == "weights"


@pytest.mark.parametrize(
    ("name", "method", "options", "said"),
    [
        ("neu", "blendet", {}, "attack 'blendet'.*blended"),
        ("neu", "prototype", {}, "attack 'prototype'"),
        ("../neu", "blended", {}, r"the record's name '\.\./neu'"),
        ("", "blended", {}, "the record's name ''"),
        ("neu", "blended", {"dataset": "cifar11"}, "data set 'cifar11'.*cifar10"),
        ("neu", "blended", {"dataset": "gtsrb"}, r"expected gtsrb with Test/GT-final_test\.csv"),
        ("neu", "blended", {"alfa": 1}, r"attack/blended\.py: .*'alfa'.*alpha"),
    ],
)
def test_an_attack_that_cannot_work_is_refused_before_it_starts(
    root: Path, name: str, method: str, options: dict[str, object], said: str
) -> None:
    before = content(root)
    for refused in (attack, check):
        with pytest.raises((ConfigError, RecordError), match=said):
            refused(root, name, method, **options)
    assert content(root) == before
