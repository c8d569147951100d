"""From a spec to a network, and back from a checkpoint to its number of classes."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.files.checkpoints import load_checkpoint, save_weights
from clp_plugin.networks.architectures import build_model, default_input_shape
from clp_plugin.networks.guessing import infer_num_classes

FILE = """
from __future__ import annotations
import dataclasses
import torch

@dataclasses.dataclass
class Width:
    out: int = 4

def net(num_classes: int, width: int = 4) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 1), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))

def fixed() -> torch.nn.Module:
    return torch.nn.Linear(3, 7)

def anything(**options):
    return torch.nn.Linear(3, options["num_classes"])

def text(num_classes):
    return "no network"

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my nets.py"
    path.write_text(FILE)
    return str(path)


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "mobilenet_v3_small", "googlenet", "inception_v3", "shufflenet_v2_x0_5"]
)
def test_torchvision_model_has_the_classes_asked_for(name: str, recwarn: pytest.WarningsRecorder) -> None:
    model = build_model(f"torchvision:{name}", num_classes=7)
    assert not model.training
    assert infer_num_classes(model.state_dict()) == 7
    shape = default_input_shape(f"torchvision:{name}")
    with torch.no_grad():
        assert model(torch.zeros(1, *shape)).shape == (1, 7)
    assert not [w for w in recwarn if "init" in str(w.message)]


def test_timm_model_has_the_classes_and_input_it_was_made_for() -> None:
    pytest.importorskip("timm")
    model = build_model("timm:efficientvit_b0.r224_in1k", num_classes=5)
    with torch.no_grad():
        assert model(torch.zeros(1, *default_input_shape("timm:efficientvit_b0.r224_in1k"))).shape == (1, 5)
    assert default_input_shape("timm:inception_v4") == (3, 299, 299)


def test_missing_timm_gives_the_line_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'pip install "clp-plugin\[timm\]"'):
        build_model("timm:resnet18", num_classes=2)


def test_builtin_models_come_from_the_builtin_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = types.ModuleType("fake")
    fake.build = lambda name, *, num_classes, width: nn.Linear(len(name) * width, num_classes)
    real = importlib.import_module

    def import_module(name: str) -> Any:
        return fake if name == "clp_plugin.adapters.builtin.models.build" else real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    model = build_model("builtin:abc", num_classes=4, width=2)
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (6, 4)
    assert default_input_shape("builtin:abc") == (3, 32, 32)


def test_callable_in_a_file_is_built_without_touching_sys_path(file: str) -> None:
    before = list(sys.path)
    model = build_model(f"{file}:net", num_classes=9, width=6)
    assert sys.path == before
    assert model(torch.zeros(1, 3, 2, 2)).shape == (1, 9)
    assert model[0].out_channels == 6  # type: ignore[index, union-attr]
    assert default_input_shape(f"{file}:net") == (3, 32, 32)


def test_callable_gets_num_classes_only_if_it_takes_it(file: str) -> None:
    assert build_model(f"{file}:fixed", num_classes=2)(torch.zeros(1, 3)).shape == (1, 7)
    assert build_model(f"{file}:anything", num_classes=2)(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("nothing", r"has no callable 'nothing'"),
        ("number", r"has no callable 'number'"),
        ("text", r"expected a torch\.nn\.Module, the callable returned <class 'str'>"),
    ],
)
def test_file_without_a_usable_callable_says_so(file: str, attribute: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(f"{file}:{attribute}", num_classes=2)


def test_file_that_fails_or_is_absent_says_so(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import surely_not_installed")
    loaded = set(sys.modules)
    missing = r"running .*broken\.py failed: ModuleNotFoundError: .*surely_not_installed.*PYTHONPATH"
    with pytest.raises(ConfigError, match=missing):
        build_model(f"{path}:net", num_classes=2)
    assert not {name for name in set(sys.modules) - loaded if name.startswith("_clp_plugin_file_")}
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.py"):
        build_model(f"{tmp_path}/absent.py:net", num_classes=2)


@pytest.mark.parametrize("spec", ["torchvision:resnet81", "timm:resnet81"])
def test_unknown_name_offers_close_ones(spec: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=rf"unknown architecture {spec}; close: .*resnet18"):
        build_model(spec, num_classes=2)


@pytest.mark.parametrize("spec", ["resnet18", "", "keras:resnet", "builtin:", ":net", "model.pt:net"])
def test_malformed_spec_lists_the_forms(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one of the forms builtin:NAME, .*file\.py:callable"):
        build_model(spec, num_classes=2)


def test_torchvision_detectors_are_not_offered() -> None:
    with pytest.raises(ConfigError, match=r"unknown architecture torchvision:fasterrcnn_resnet50_fpn"):
        build_model("torchvision:fasterrcnn_resnet50_fpn", num_classes=2)


def test_option_that_the_builder_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot build torchvision:alexnet with 2 classes and width=3: .*width"):
        build_model("torchvision:alexnet", num_classes=2, width=3)
    with pytest.raises(ConfigError, match=r"at least 1 class, found 0"):
        build_model("torchvision:alexnet", num_classes=0)


def test_number_of_classes_survives_the_order_of_safetensors(tmp_path: Path) -> None:
    state_dict = {
        "fc.weight": torch.zeros(7, 16),
        "classifier.9.weight": torch.zeros(32, 16),
        "classifier.10.weight": torch.zeros(6, 32),
        "layer4.se.fc.weight": torch.zeros(3, 16),
    }
    senet = {key: state_dict[key] for key in ("layer4.se.fc.weight", "fc.weight")}
    vgg = {key: state_dict[key] for key in ("classifier.9.weight", "classifier.10.weight")}
    for weights, classes in ((senet, 7), (vgg, 6)):
        save_weights(weights, tmp_path / "x.safetensors")
        assert infer_num_classes(load_checkpoint(tmp_path / "x.safetensors")) == classes
        assert infer_num_classes(weights) == classes


def test_number_of_classes_of_a_headless_checkpoint_is_asked_for() -> None:
    with pytest.raises(CheckpointError, match=r"none of the 1 tensors .*--num-classes"):
        infer_num_classes({"conv.weight": torch.zeros(4, 3, 3, 3)})
    assert infer_num_classes({"a.weight": torch.zeros(5, 2), "b.weight": torch.zeros(3, 5)}) == 3
