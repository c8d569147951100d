"""BackdoorBox's package where not all that it imports is there: what starts is told, and scripts run with CLP in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from boxed_attacks import core_checkout
from command_line import bench, refused

SCRIPT = """
import sys
import core
from core.attacks import BadNets
from core.defenses import NAD
import beside
assert core.BadNets is BadNets and core.attacks.BadNets is BadNets
assert core.models.ResNet is core.ResNet
assert issubclass(BadNets, core.attacks.base.Base)
from clp_plugin.adapters.backdoorbox import CLP
assert core.CLP is CLP is core.defenses.CLP
for name in ("Lost", "Nothing"):
    try:
        getattr(core, name)
    except (ImportError, AttributeError) as error:
        print(type(error).__name__, error)

class Images:
    targets = [1, 2]
    def __getitem__(self, position):
        import torch
        return torch.zeros(3, 8, 8), 0

import torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
images = Images()
CLP(model, images).test({"metric": "ASR_NoTarget"})
assert images.targets == [1, 2]
print("arguments", sys.argv[1:], beside.NAME)
"""


def test_a_script_of_its_users_runs_with_clp_in_core(tmp_path: Path) -> None:
    root = core_checkout(tmp_path / "box")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("NAME = 'found'\n")
    command = [sys.executable, "-m", "clp_plugin", "toolbox", "register", "backdoorbox", "--root", str(root), "--"]
    done = subprocess.run([*command, str(tmp_path / "script.py"), "-x"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ModuleNotFoundError No module named 'package_that_nobody_has'" in done.stdout
    assert "Nothing" in done.stdout
    assert "ran {'metric': 'ASR_NoTarget'}" in done.stdout
    assert "arguments ['-x'] found" in done.stdout


def test_what_starts_is_told_part_by_part(tmp_path: Path) -> None:
    root = core_checkout(tmp_path / "box")
    found = bench("toolbox", "check", "backdoorbox", "--root", root, "--json").json
    states = {(each["kind"], each["name"]): each["problem"] for each in found["scripts"]}
    assert states == {
        ("attack", "BadNets"): "",
        ("attack", "Lost"): "ModuleNotFoundError: No module named 'package_that_nobody_has'",
        ("defense", "NAD"): "",
        ("defense", "Pruning"): "",
    }
    assert found["registered"] is None
    assert found["pip"].endswith("pip install package_that_nobody_has")
    assert "for one script at a time" in bench("toolbox", "check", "backdoorbox", "--root", root).err


def test_a_place_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    assert "is no BackdoorBox checkout: it lacks core/attacks/base.py" in refused(
        "toolbox", "check", "backdoorbox", "--root", tmp_path
    )
    assert "expected a script that imports BackdoorBox's core" in refused(
        "toolbox", "register", "backdoorbox", "--root", tmp_path, "--", "no.py"
    )
