"""What today's Python, torch and numpy refuse works in the child process, and what must not run does not run there.

One script tries everything and notes what came of it: once behind the launcher, once in an interpreter as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkout import write

from clp_plugin.adapters.backdoorbench.state import _state
from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.config import CONFIG_VARIABLE

LAUNCHER = ["-m", "clp_plugin.adapters.backdoorbench.launcher"]

PROBE = """
import argparse, json, math, os, sys, warnings
warnings.simplefilter("ignore")
sys.path.append(os.getcwd())
import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):  # known in this script only
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return torch.tensor(index * index)

def no_network(*args, **facts):
    raise OSError("asked for a download")

def gone_from_numpy():
    return [math.isinf(np.infty), np.float is float, np.int(3)]

def moved_packages():
    from defense.mbns.net import Net
    import defense.dde
    from utils.defense_utils.mbns.net import Net as real
    return [Net is real, defense.dde.NAME]

def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_workers", type=float)
    parser.add_argument("-un", "--u_num", type=float, default=3)
    parser.add_argument("--client_optimizer", type=int)
    parser.add_argument("--steplr_milestones", type=list)
    parser.add_argument("--lr", type=float)
    words = "--num_workers 2 --u_num 21 --client_optimizer sgd --steplr_milestones [10,20] --lr 0.5".split()
    found = parser.parse_args(words)
    used = [range(found.num_workers)[-1], len(np.linspace(0, 1, found.u_num))]
    return [*used, found.client_optimizer, found.steplr_milestones, found.lr]

def numpy_in_a_checkpoint():
    found = torch.load("record.pt")
    return [found["indices"].tolist(), sorted(map(int, found["by_index"])), found["weights"].tolist()]

def foreign_code():
    torch.load("evil.pt")

def loaders_next():
    return iter(DataLoader(Squares(), batch_size=2)).next().tolist()

def loader_processes():
    return [batch.tolist() for batch in DataLoader(Squares(), batch_size=2, num_workers=2)]

def hard_coded_cuda():
    gpu = torch.device("cuda")
    tensors = [
        torch.zeros(2, device="cuda"), torch.tensor([1.0], device=gpu), torch.ones(2).to("cuda:0"), torch.ones(2).cuda(),
        torch.ones(2).to(device=gpu), torch.nn.Linear(1, 1).to("cuda").weight, torch.nn.Linear(1, 1).cuda(0).weight,
    ]
    return sorted({tensor.device.type for tensor in tensors})

def other_moves():
    return [str(torch.ones(2).to(torch.float64).dtype), str(torch.zeros(2, dtype=torch.int64, device="cpu").dtype)]

def networks():
    import models.resnext, models.senet
    return [
        models.senet.SENet18(num_classes=7).facts, models.resnext.ResNeXt29_2x64d(num_classes=7).facts,
        models.resnext.ResNeXt29_32x4d(num_classes=8).facts,
    ]

def pretrained():
    torchvision.models._api.load_state_dict_from_url = no_network
    with torch.device("meta"):
        network = torchvision.models.convnext_tiny(pretrained=True, num_classes=1000)
    return sum(weight.numel() for weight in network.parameters())

def resources():
    from pkg_resources import resource_stream
    return resource_stream("waves.coeffs", "data/haar.txt").read().decode()

def mixed_precision():
    from utils.aggregate_block.model_trainer_generate import generate_cls_model
    kinds = []
    for enabled in (True, False):
        with torch.cuda.amp.autocast(enabled=enabled):
            kinds.append(str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
    weight = generate_cls_model("net", num_classes=3).weight
    return [*kinds, weight.is_contiguous(memory_format=torch.channels_last)]

def started_as():
    return [__name__, sys.argv[1:], os.getcwd() in map(os.path.abspath, sys.path)]

def tried(probe):
    try:
        return probe()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    probes = [
        gone_from_numpy, moved_packages, options, numpy_in_a_checkpoint, foreign_code, loaders_next, loader_processes,
        hard_coded_cuda, other_moves, networks, pretrained, resources, mixed_precision, started_as,
    ]
    with open("found.json", "w") as file:
        json.dump({probe.__name__: tried(probe) for probe in probes}, file)
"""

FILES = {
    "defense/probe.py": PROBE,
    "attack/probe.py": PROBE,
    "defense/__init__.py": "",
    "utils/__init__.py": "",
    "utils/defense_utils/mbns/__init__.py": "",
    "utils/defense_utils/mbns/net.py": "class Net: pass",
    "utils/defense_utils/dde/__init__.py": "NAME = __name__",
    "utils/aggregate_block/model_trainer_generate.py": """
        import torch
        def generate_cls_model(name, num_classes=10, image_size=32):
            return torch.nn.Conv2d(4, num_classes, 3)
        """,
    "models/senet.py": """
        class PreActBlock: pass
        class SENet:
            def __init__(self, block, num_blocks, num_classes=10):
                self.facts = [block is PreActBlock, num_blocks, num_classes]
        def SENet18():
            return SENet(PreActBlock, [2, 2, 2, 2])
        """,
    "models/resnext.py": """
        class ResNeXt:
            def __init__(self, num_blocks, cardinality, bottleneck_width, num_classes=10):
                self.facts = [num_blocks, cardinality, bottleneck_width, num_classes]
        def ResNeXt29_2x64d():
            return ResNeXt([3, 3, 3], 2, 64)
        def ResNeXt29_32x4d():
            return ResNeXt([3, 3, 3], 32, 4)
        """,
    "waves/__init__.py": "",
    "waves/coeffs.py": "",
    "waves/data/haar.txt": "1 1",
}


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.witness),))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        write(root / name, text)
    content = {"indices": np.arange(2), "by_index": {np.int64(4): {"path": "x"}}, "weights": torch.ones(1)}
    torch.save(content, root / "record.pt")
    torch.save(Evil(Path("ran")), root / "evil.pt")
    return root


def python(place: Path, *command: str) -> dict[str, Any]:
    """What the script noted."""
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    (place / "found.json").unlink()
    return found


@pytest.fixture(scope="module")
def bridged(place: Path) -> dict[str, Any]:
    return python(place, *LAUNCHER, "run", "defense/probe.py", "--u", "3")


@pytest.fixture(scope="module")
def bare(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    elsewhere = tmp_path_factory.mktemp("bare") / "checkout"  # torch before 2.6 leaves there what evil.pt makes
    return python(shutil.copytree(place, elsewhere), "defense/probe.py", "--u", "3")


WANTED = {
    "gone_from_numpy": [True, True, 3],
    "moved_packages": [True, "utils.defense_utils.dde"],
    "options": [1, 21, "sgd", [10, 20], 0.5],
    "numpy_in_a_checkpoint": [[0, 1], [4], [1.0]],
    "loaders_next": [0, 1],
    "hard_coded_cuda": ["cpu"],
    "networks": [[True, [2, 2, 2, 2], 7], [[3, 3, 3], 2, 64, 7], [[3, 3, 3], 32, 4, 8]],
    "pretrained": 28_589_128,  # of ConvNeXt-T with 1000 classes: torchvision's documentation
}


@pytest.mark.parametrize("name", WANTED)
def test_a_bridge_gives_back_what_is_gone(bridged: dict[str, Any], bare: dict[str, Any], name: str) -> None:
    assert bridged[name] == WANTED[name]
    if name == "numpy_in_a_checkpoint" or (name == "gone_from_numpy" and np.lib.NumpyVersion(np.__version__) < "2.0.0"):
        return  # torch before 2.6 loads everything, numpy before 2 has the names
    assert bare[name] != WANTED[name], "the bridge is not needed any more"


def test_what_never_was_broken_still_works(bridged: dict[str, Any]) -> None:
    assert bridged["loader_processes"] == [[0, 1], [4, 9]]
    assert bridged["other_moves"] == ["torch.float64", "torch.int64"]
    assert bridged["resources"] == "1 1"
    assert bridged["mixed_precision"] == ["torch.float32", "torch.float32", False]
    assert bridged["started_as"] == ["__main__", ["--u", "3"], True]


def test_a_pickle_that_runs_code_is_refused(place: Path, bridged: dict[str, Any]) -> None:
    assert bridged["foreign_code"].startswith("CheckpointError: ")
    assert not (place / "ran").exists()


def test_flags_and_attacks_change_what_they_should(place: Path, bridged: dict[str, Any]) -> None:
    """Attacks start from the published weights; trust runs what a pickle asks for; on request the CPU is quick."""
    found = python(place, *LAUNCHER, "--trust", "--fast-cpu", "run", "attack/probe.py")
    assert found["pretrained"] == "OSError: asked for a download"
    assert found["foreign_code"] is None
    (place / "ran").rmdir()
    assert found["mixed_precision"] == ["torch.bfloat16", "torch.float32", True]
    same = WANTED.keys() - {"pretrained"}
    assert {name: found[name] for name in same} == {name: WANTED[name] for name in same}


def test_check_tells_which_scripts_start_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "bench"
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "settings.yaml"))
    scripts = {
        "defense/clp.py": "import argparse\nif __name__ == '__main__':\n    open('ran', 'w')",
        "defense/ft.py": "from no_such_package.sub import thing",
        "defense/sau.py": "import sys\nsys.path.insert(0, 'x')\nsys.exit(3)",
        "defense/somebody.py": "1 / 0",
        "attack/badnet.py": "1 / 0",
        "attack/trojannn.py": "import json",
        "attack/prototype.py": "1 / 0",
        "utils/save_load_attack.py": "",
    }
    for name, text in scripts.items():
        write(root / name, text)
    state = BackdoorBench().check(root=root)
    assert (state.root, state.found_by, state.commit, state.registered) == (root, "--root", "", False)
    found = {(script.kind, script.name): (script.problem, script.missing) for script in state.scripts}
    assert found.pop(("attack", "trojannn"))[0].startswith("needs a network that its authors trained")
    assert found == {
        ("defense", "clp"): ("", ""),
        ("defense", "ft"): ("ModuleNotFoundError: No module named 'no_such_package'", "no_such_package"),
        ("defense", "sau"): ("SystemExit: 3", ""),
        ("attack", "badnet"): ("ZeroDivisionError: division by zero", ""),
    }
    assert {path.name for path in root.iterdir()} == {"defense", "attack", "utils"}


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("cv2", "opencv-python-headless"),
        ("skimage.metrics", "scikit-image"),
        ("umap", "umap-learn"),
        ("numba", "numba"),
    ],
)
def test_a_missing_module_is_named_as_pip_wants_it(module: str, package: str) -> None:
    state = _state("attack", "x", f"ModuleNotFoundError: No module named '{module}'")
    assert (state.missing, state.kind, state.name) == (package, "attack", "x")
