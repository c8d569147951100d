"""``bench list toolboxes``: version, place, what runs; no toolbox is started, and none that is missing ends the list."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from boxed_attacks import core_checkout
from command_line import bench
from fake_checkout import write

from clp_plugin.config import CONFIG_VARIABLE, remember_toolbox

VARIABLES = ("BACKDOORBENCH_ROOT", "BACKDOORBOX_ROOT", "BACKDOOR_TOOLBOX_ROOT")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "settings.yaml"))
    monkeypatch.chdir(tmp_path)


def listed(*more: object) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in bench("list", "toolboxes", "--json", *more).json["toolboxes"]}


def test_a_toolbox_that_is_nowhere_is_told_with_what_names_it() -> None:
    found = listed()
    for name, variable in zip(("backdoorbench", "backdoorbox", "backdoor_toolbox"), VARIABLES, strict=True):
        assert (found[name]["root"], found[name]["version"], found[name]["runs"]) == (None, "", [])
        assert f"give --root PATH, set {variable}" in found[name]["problem"]
    assert found["builtin"]["found_by"] == "part of clp_plugin"
    assert found["builtin"]["problem"] == ""


@pytest.mark.skipif(find_spec("trojanvision") is not None, reason="TrojanZoo is installed")
def test_a_package_that_is_not_installed_is_told_with_how_to_install_it() -> None:
    assert "pip install" in listed()["trojanzoo"]["problem"]


@pytest.mark.skipif(find_spec("trojanvision") is None, reason="needs the extra trojanzoo")
def test_an_installed_package_is_told_with_its_release() -> None:
    found = listed()["trojanzoo"]
    assert found["version"]
    assert "Pascal VOC" in found["fails"]["refool"]


def test_commit_place_scripts_and_known_failures_of_a_checkout_are_told_and_no_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bench"
    for file in ("attack/badnet.py", "attack/trojannn.py", "defense/clp.py", "utils/save_load_attack.py"):
        write(root / file, "raise SystemExit('nobody may run this')\n")
    write(root / ".git" / "HEAD", f"{COMMIT}\n")
    remember_toolbox("backdoorbench", root)
    box = core_checkout(tmp_path / "box")
    monkeypatch.setenv("BACKDOORBOX_ROOT", str(box))

    def started(*given: object, **more: object) -> None:
        raise AssertionError(f"started {given}")

    monkeypatch.setattr(subprocess, "Popen", started)
    found = listed()
    of_bench, of_box = found["backdoorbench"], found["backdoorbox"]
    assert (of_bench["version"], of_bench["root"]) == (COMMIT, str(root))
    assert of_bench["found_by"] == str(tmp_path / "settings.yaml")
    assert {"attacks: badnet", "defenses: clp"} <= set(of_bench["runs"])
    assert list(of_bench["fails"]) == ["trojannn"]
    assert (of_box["version"], of_box["root"], of_box["found_by"]) == ("", str(box), "BACKDOORBOX_ROOT")
    assert "defenses: FineTuning, NAD, Pruning" in of_box["runs"]
    shown = bench("list", "toolboxes").out
    assert all(word in shown for word in ("backdoorbench", "trojannn", "BACKDOOR_TOOLBOX"))


def test_a_place_that_is_no_checkout_is_told_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKDOORBOX_ROOT", str(tmp_path))
    found = listed()
    assert f"BACKDOORBOX_ROOT: {tmp_path} is no BackdoorBox checkout" in found["backdoorbox"]["problem"]
    assert len(found) >= 6


def test_a_toolbox_of_somebody_else_tells_of_itself_by_a_function_beside_its_entry(tmp_path: Path) -> None:
    write(
        tmp_path / "own.py",
        "from pathlib import Path\n"
        "from clp_plugin.records.exchange import ToolboxPresence\n"
        "def presence(): return ToolboxPresence(Path('/own'), 'luck', '1.2', ['records'], {'attacks': 'none'})\n"
        "def broken(): raise ValueError('boom')\n",
    )
    entry = "{{object: 'own.py:Own', summary: s, presence: 'own.py:{}'}}"
    registry = tmp_path / "own.yaml"
    write(registry, f"toolboxes:\n  mine: {entry.format('presence')}\n  other: {entry.format('broken')}\n")
    found = listed("--registry", registry)
    mine = {key: found["mine"][key] for key in ("version", "root", "found_by", "runs", "fails", "problem")}
    assert mine == {
        "version": "1.2", "root": "/own", "found_by": "luck", "runs": ["records"], "fails": {"attacks": "none"}, "problem": "",
    }  # fmt: skip
    assert found["other"]["problem"].endswith("ValueError: boom")
