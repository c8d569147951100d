"""Registering in a checkout adds our files, touches nothing else, and can be taken back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clp_plugin.adapters.backdoorbench.registration import is_registered, register
from clp_plugin.bench.run import make_defense
from clp_plugin.errors import ConfigError
from clp_plugin.registry import load_catalogue


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "Bänke und Hintertüren"
    for folder in ("defense", "config/defense/clp", "attack"):
        (root / folder).mkdir(parents=True)
    (root / "defense" / "clp.py").write_text("theirs")
    (root / "config" / "defense" / "clp" / "cifar10.yaml").write_text("u: 3")
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_register_adds_a_script_and_a_yaml_a_data_set_and_remove_takes_them_out(checkout: Path) -> None:
    before = content(checkout)
    written = register(checkout)
    assert is_registered(checkout)
    assert {str(path.relative_to(checkout)) for path in written} == content(checkout).keys() - before.keys()
    assert before.items() <= content(checkout).items()
    assert (checkout / "defense" / "clp_plugin.py") in written
    assert register(checkout, remove=True) == written
    assert content(checkout) == before
    assert not (checkout / "config" / "defense" / "clp_plugin").exists()
    assert not is_registered(checkout)
    assert register(checkout, remove=True) == []


def test_the_yaml_files_leave_u_to_the_data_set_of_the_record(checkout: Path) -> None:
    register(checkout)
    folder = checkout / "config" / "defense" / "clp_plugin"
    found = {path.stem: yaml.safe_load(path.read_text()) for path in folder.iterdir()}
    assert found.keys() == {"config", "cifar10", "cifar100", "gtsrb", "tiny"}
    assert all(facts["u"] is None for facts in found.values())
    assert all(facts["dataset"] == name for name, facts in found.items() if name != "config")
    usual = {name: make_defense(load_catalogue(), "clp", name, {})[1]["u"] for name in found if name != "config"}
    assert usual == {"cifar10": 3, "cifar100": 3, "gtsrb": 3, "tiny": 5}  # the toolbox's own config/defense/clp


def test_a_file_of_somebody_else_stays(checkout: Path) -> None:
    (checkout / "defense" / "clp_plugin.py").write_text("print('mine')")
    before = content(checkout)
    for remove in (False, True):
        with pytest.raises(ConfigError, match=r"clp_plugin\.py was not written by this plugin"):
            register(checkout, remove=remove)
    assert content(checkout) == before


def test_remove_leaves_what_the_user_put_beside_our_files(checkout: Path) -> None:
    register(checkout)
    own = checkout / "config" / "defense" / "clp_plugin" / "mine.yaml"
    own.write_text("u: 2")
    register(checkout, remove=True)
    assert own.read_text() == "u: 2"


def test_the_script_starts_though_it_has_the_packages_name(checkout: Path) -> None:
    register(checkout)
    found = subprocess.run(
        [sys.executable, "defense/clp_plugin.py", "--help"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "--result_file RECORD" in found.stdout


def test_the_script_says_a_mistake_in_one_line(checkout: Path) -> None:
    register(checkout)
    found = subprocess.run(
        [sys.executable, "defense/clp_plugin.py", "--result_file", "nope", "--dataset", "cifar10", "--num_workers", "4"],
        cwd=checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    remark, error = found.stderr.splitlines()
    assert remark == "not used here: --num_workers"
    assert error.startswith("error: ")


def test_without_the_package_the_script_says_how_to_install_it(checkout: Path) -> None:
    register(checkout)
    found = subprocess.run(
        [sys.executable, "-S", "-E", "defense/clp_plugin.py"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert "-m pip install clp-plugin" in found.stderr
