"""The scripts of a real checkout take what we give them. Runs where BACKDOORBENCH_ROOT names one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from backdoorbench_reading import ADAPTER, everything
from backdoorbench_trees import CLASSES, Tree, write_record
from command_line import bench

from clp_plugin.adapters.backdoorbench.datasets import FACTS
from clp_plugin.adapters.backdoorbench.defenses import DEFENSES, plan
from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.adapters.backdoorbench.toolbox_facts import BACKDOORBENCH, attack_names
from clp_plugin.adapters.driving.checkout import commit_of, install
from clp_plugin.errors import ConfigError, ToolboxError
from clp_plugin.records.exchange import RunRequest
from clp_plugin.store.outcomes import load_outcome

ROOT = os.environ.get("BACKDOORBENCH_ROOT")
pytestmark = pytest.mark.skipif(not ROOT, reason="BACKDOORBENCH_ROOT names no checkout of BackdoorBench")


@pytest.fixture
def root() -> Path:
    return Path(ROOT or "")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "gtsrb", "tiny"])
@pytest.mark.parametrize("method", DEFENSES)
def test_every_defense_takes_what_it_is_given(root: Path, method: str, dataset: str) -> None:
    result: Any = SimpleNamespace(dataset=dataset, model_name="preactresnet18", train=())
    facts: dict[str, Any] = {"record_name": "eins", "device": "cpu", "seed": 0, "mixed_precision": False}
    made = plan(root, method, result, {"batch_size": 7}, **facts)
    given = dict(zip(made.arguments[::2], made.arguments[1::2], strict=True))
    wanted = {
        "--dataset": dataset,
        "--model": "preactresnet18",
        "--batch_size": "7",
        "--amp": "False",
        "--num_workers": "0",
    }
    assert given.items() >= wanted.items()
    assert (root / given["--yaml_path"]).is_file()
    assert made.options["dataset"] == dataset


@pytest.mark.parametrize("method", attack_names(Path(ROOT)) if ROOT else [])
def test_every_attack_takes_our_options(root: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where it would start: the process is not made."""
    started: list[list[str]] = []

    def note(script: Any, *_: Any, **__: Any) -> float:
        started.append(script.command())
        return 0.0

    monkeypatch.setattr("clp_plugin.adapters.backdoorbench.attacks.run_script", note)
    monkeypatch.setattr("clp_plugin.adapters.backdoorbench.attacks._data", lambda root, name: (cifar10(), root))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    options = BackdoorBench().attack_options({"model": "resnet18", "poison_rate": 0.1, "target": 2, "epochs": 1})
    request = RunRequest(options, root=root)
    with pytest.raises(ToolboxError, match="ended without writing"), BackdoorBench().attacked("new", method, request):
        pass
    [command] = started
    assert [command[command.index(name) + 1] for name in ("--pratio", "--attack_target")] == ["0.1", "2"]


def cifar10() -> Any:
    return SimpleNamespace(name="cifar10")


def test_the_commit_that_was_tested_can_be_installed_from_a_clone(root: Path, tmp_path: Path) -> None:
    if not commit_of(root):
        pytest.skip("the checkout is no git repository")
    try:
        place = install(BACKDOORBENCH, tmp_path / "bench", source=str(root), ref=None)
    except ConfigError as error:
        pytest.skip(f"the checkout cannot be cloned: {error}")
    assert commit_of(place) == BACKDOORBENCH.tested


@pytest.mark.slow
def test_every_defense_starts_here(root: Path) -> None:
    problems = {
        script.name: script.problem for script in BackdoorBench().check(root=root).scripts if script.kind == "defense"
    }
    assert problems == dict.fromkeys(DEFENSES, "")


# Of the scripts, so that each takes seconds; half of the 40 clean training images.
SHORT: dict[str, dict[str, object]] = {
    "clp": {"u_num": 3},
    "ft": {"ratio": 0.5, "epochs": 1},
    "fp": {"ratio": 0.5, "epochs": 1, "once_prune_ratio": 0.3},
    "nad": {"ratio": 0.5, "te_epochs": 1},
    "anp": {"ratio": 0.5, "batch_size": 16, "nb_iter": 2, "print_every": 2, "pruning_step": 0.4},
    "rnp": {"ratio": 0.5, "unlearning_epochs": 1, "recovering_epochs": 1, "pruning_step": 0.4},
    "ft-sam": {"ratio": 0.5, "epochs": 1},
    "sau": {"ratio": 0.5, "n_rounds": 1},
    "npd": {"ratio": 0.5, "epochs": 1},
    "i-bau": {"ratio": 0.5, "n_rounds": 1},
    "bnp": {"u_num": 3},
    "ep": {"u_num": 3},
}
# The made-up data set has another checksum than CIFAR-10.
ANY_CIFAR = """
import torchvision.datasets.cifar as cifar
cifar.check_integrity = lambda *_, **__: True
cifar.CIFAR10._check_integrity = lambda _: True
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A record of the toolbox's own network, of random weights."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "sitecustomize.py").write_text(ANY_CIFAR)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "harness"), os.environ.get("PYTHONPATH", "")]))
    weights = build("preactresnet18", CLASSES).state_dict()
    return write_record(
        tmp_path / "bench", weights=weights, edit=lambda content: content.update(model_name="preactresnet18")
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", DEFENSES)
def test_what_a_script_says_of_its_model_is_what_we_measure(root: Path, tree: Tree, method: str) -> None:
    options = [part for name, value in SHORT[method].items() for part in ("--option", f"{name}={value}")]
    found = bench(
        "defend", "--record", tree.folder, "--toolbox", "backdoorbench", "--root", root, "--impl", "toolbox",
        "--method", method, "--device", "cpu", "--json", *options,
    ).json  # fmt: skip
    outcome = load_outcome(Path(found["outcome"]))
    assert outcome.images_apart == {"acc": 0, "asr": 0, "ra": 0}
    assert (outcome.protocol == "oracle") == (method in ("anp", "fp"))


# What the toolbox itself loads: all labels, and the tensors and predictions of some images.
THEIRS = """
import sys
import numpy, torch, torchvision.datasets.cifar as cifar
cifar.check_integrity = lambda *a, **k: True
cifar.CIFAR10._check_integrity = lambda self: True
sys.path.insert(0, ".")
from utils.save_load_attack import load_attack_result
from utils.aggregate_block.model_trainer_generate import generate_cls_model
result, found = load_attack_result(sys.argv[1]), {}
weights = result["model"]
model = generate_cls_model(result["model_name"], 10).eval()
model.load_state_dict(weights)
for name in ("clean_test", "bd_test"):
    items = [result[name][i] for i in range(0, len(result[name]), 25)]
    found[name] = torch.stack([item[0] for item in items]).numpy()
    with torch.no_grad():
        found[name + "_logits"] = model(torch.from_numpy(found[name])).numpy()
poisoned = result["bd_test"].wrapped_dataset
found["order"] = poisoned.original_index_array
entries = poisoned.bd_data_container.data_dict
found["labels"] = numpy.array([entries[i]["other_info"] for i in poisoned.original_index_array])
numpy.savez(sys.argv[2], **found)
"""


def finished_records() -> list[str]:
    return sorted(path.parent.name for path in Path(ROOT, "record").glob("*/attack_result.pt")) if ROOT else []


@pytest.mark.slow
@pytest.mark.parametrize("name", finished_records() or [""])
def test_the_toolbox_itself_loads_the_same(root: Path, tmp_path: Path, name: str) -> None:
    if not name:
        pytest.skip("needs finished records: the folder record of the checkout holds none")
    folder = root / "record" / name
    script, out = tmp_path / "theirs.py", tmp_path / "theirs.npz"
    script.write_text(THEIRS, encoding="utf-8")
    launcher = [sys.executable, "-m", "clp_plugin.adapters.backdoorbench.launcher", "run"]
    command = [*launcher, str(script), str(folder / "attack_result.pt"), str(out)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs, record = np.load(out), ADAPTER.open(folder)
    assert record.triggered.clean_index.tolist() == theirs["order"].tolist()
    true = record.triggered.images.labels
    assert np.stack([record.target.wanted(true), true], axis=1).tolist() == theirs["labels"].tolist()
    for kind, images in (("clean_test", record.clean), ("bd_test", record.triggered.images)):
        some = everything(images.take(np.arange(0, len(images), 25)))
        assert torch.equal(some, torch.from_numpy(theirs[kind]))
        with torch.no_grad():
            assert torch.allclose(record.model(some), torch.from_numpy(theirs[f"{kind}_logits"]), atol=1e-4)


# One "name classes (H, W, C) mean std" a line, from the toolbox's own functions.
FACTS_OF_THE_CHECKOUT = """
import sys
sys.path.insert(0, ".")
from utils.aggregate_block.dataset_and_transform_generate import *
for name in sys.argv[1:]:
    steps = get_transform(name, *get_input_shape(name)[:2], train=False).transforms
    assert [type(step).__name__ for step in steps] == ["Resize", "ToTensor", "Normalize"]
    print("found", repr((name, get_num_classes(name), get_input_shape(name), list(steps[2].mean), list(steps[2].std))))
"""


@pytest.mark.slow
def test_facts_equal_those_of_a_checkout(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text(FACTS_OF_THE_CHECKOUT, encoding="utf-8")
    launcher = [sys.executable, "-m", "clp_plugin.adapters.backdoorbench.launcher", "run", str(script)]
    ran = subprocess.run([*launcher, *FACTS], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = [line.removeprefix("found ") for line in ran.stdout.splitlines() if line.startswith("found ")]
    ours = [
        repr((facts.name, facts.num_classes, (*facts.shape[1:], facts.shape[0]), [*facts.mean], [*facts.std]))
        for facts in FACTS.values()
    ]
    assert [row.replace(".0", "") for row in rows] == [row.replace(".0", "") for row in ours]
