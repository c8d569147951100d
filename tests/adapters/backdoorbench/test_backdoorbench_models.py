"""Every network that the toolbox names: same keys, same shapes, same function, and nothing downloaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from tiny_nets import randomize
from torch import Tensor, nn

from clp_plugin.adapters.backdoorbench.models import NAMES, build, load, load_weights
from clp_plugin.errors import CheckpointError

# What the toolbox's factory knows, from its source.
TORCHVISION = (
    "alexnet convnext_tiny densenet121 densenet161 efficientnet_b0 efficientnet_b3 googlenet inception_v3 mnasnet1_0 "
    "mobilenet_v2 mobilenet_v3_large resnet18 resnet34 resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_0 vgg11 "
    "vgg16 vgg19 vgg19_bn wide_resnet50_2"
).split()
TRANSFORMERS = ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"]
OWN = ["preactresnet18", "resnext29", "senet18"]
# Convolutions, BatchNorms and their channels, counted in the toolbox's own networks.
COUNTS = {
    "preactresnet18": (20, 16, 3392),
    "senet18": (36, 17, 3456),
    "resnext29": (31, 31, 12608),
    "resnet18": (20, 20, 4800),
    "resnet34": (36, 36, 8512),
    "resnet50": (53, 53, 26560),
    "resnext50_32x4d": (53, 53, 34112),
    "wide_resnet50_2": (53, 53, 34112),
    "vgg19_bn": (16, 16, 5504),
    "densenet161": (160, 161, 109968),
    "densenet121": (120, 121, 41824),
    "mobilenet_v2": (52, 52, 17056),
    "mobilenet_v3_large": (62, 46, 12200),
    "efficientnet_b0": (81, 49, 21008),
    "efficientnet_b3": (130, 78, 43648),
    "mnasnet1_0": (52, 52, 18960),
    "shufflenet_v2_x1_0": (56, 56, 8090),
    "googlenet": (59, 59, 7536),
    "inception_v3": (96, 96, 18112),
}
SHORTCUTS = {"preactresnet18": 3, "senet18": 3, "resnext29": 3}  # blocks that change the width, and so have one


@cache
def on_meta(name: str, num_classes: int = 7) -> nn.Module:
    """The network without its numbers: what counts here are names and shapes."""
    with torch.device("meta"):
        return build(name, num_classes)


def shapes(state_dict: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(key, tuple(value.shape), value.dtype) for key, value in state_dict.items()]


def small(seed: int = 0, name: str = "squeezenet1_0") -> nn.Module:
    """An independent copy of a small network with random weights and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomize(torchvision.models.get_model(name, weights=None, num_classes=7), seed).eval()


def test_every_name_of_the_toolbox_is_known_and_no_other() -> None:
    assert sorted(NAMES) == sorted([*TORCHVISION, *TRANSFORMERS, *OWN])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_have_torchvisions_keys_in_its_order(name: str) -> None:
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, num_classes=7, **quick)
    assert shapes(on_meta(name).state_dict()) == shapes(theirs.state_dict())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_vision_transformers_stand_behind_a_resize(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
        theirs.heads.head = nn.Linear(theirs.heads.head.in_features, 7)
    model = on_meta(name)
    assert shapes(model.state_dict()) == [(f"1.{key}", *rest) for key, *rest in shapes(theirs.state_dict())]
    if name == "vit_b_32":  # the others say the same, slowly
        assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", COUNTS)
def test_layers_are_as_many_as_in_the_toolbox(name: str) -> None:
    modules = list(on_meta(name).modules())
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    assert (convolutions, len(norms), sum(norm.num_features for norm in norms)) == COUNTS[name]


@pytest.mark.parametrize("name", OWN)
def test_our_own_networks_take_small_images_and_have_the_toolboxs_names(name: str) -> None:
    model = on_meta(name)
    keys = list(model.state_dict())
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 7)
    assert keys[0] == "conv1.weight"
    assert keys[-2:] == ["linear.weight", "linear.bias"]
    assert len([key for key in keys if key.endswith("shortcut.0.weight")]) == SHORTCUTS[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_have_the_classes_asked_for_and_return_logits(name: str) -> None:
    size = {"inception_v3": 299, "alexnet": 64}.get(name, 32)
    for classes in (7, 43):
        assert on_meta(name, classes)(torch.zeros(1, 3, size, size, device="meta")).shape == (1, classes)


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_in_eval_mode(name: str) -> None:
    assert not any(module.training for module in on_meta(name).modules())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("asked for the network or the cache of weights")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", refuse)
    with torch.device("meta"):
        build(name, 7)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'resnet99'.*preactresnet18.*vit_l_32"):
        build("resnet99", 10)


def test_weights_are_loaded_by_name() -> None:
    source, model = small(1), build("squeezenet1_0", 7)
    shuffled = dict(reversed(source.state_dict().items()))
    load_weights(model, shuffled, where="here")
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(inputs), source(inputs))


def test_other_names_are_matched_by_position_if_all_shapes_agree() -> None:
    source, model = small(1), build("squeezenet1_0", 7)
    renamed = OrderedDict((f"old.{number}", value) for number, value in enumerate(source.state_dict().values()))
    load_weights(model, renamed, where="here")
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(inputs), source(inputs))


def test_other_names_and_one_other_shape_are_refused() -> None:
    """The toolbox goes by the number of keys alone, and then fails without saying where."""
    values = list(small(1).state_dict().values())
    values[0], values[2] = values[2], values[0]
    renamed = OrderedDict((f"old.{number}", value) for number, value in enumerate(values))
    with pytest.raises(CheckpointError) as caught:
        load_weights(build("squeezenet1_0", 7), renamed, where="some/file.pt as squeezenet1_0")
    assert "some/file.pt as squeezenet1_0" in str(caught.value)
    assert "'features.0.weight'" in str(caught.value)


@pytest.mark.parametrize("change", ["one missing", "one more", "none"])
def test_weights_that_lack_a_key_or_have_one_too_many_are_refused(change: str) -> None:
    weights = dict(small(1).state_dict())
    if change == "one missing":
        del weights["classifier.1.bias"]
    elif change == "one more":
        weights["classifier.2.weight"] = torch.zeros(3, 3)
    else:
        weights.clear()
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights(build("squeezenet1_0", 7), weights, where="here")


def test_statistics_and_counters_are_loaded_too() -> None:
    source, model = small(3, "shufflenet_v2_x1_0"), build("shufflenet_v2_x1_0", 7)
    weights = source.state_dict()
    weights["conv1.1.num_batches_tracked"].fill_(12)
    load_weights(model, weights, where="here")
    assert shapes(model.state_dict()) == shapes(weights)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())


# Names and shapes of all networks; weights and outputs of those that are not torchvision's.
THEIRS = """
import sys
import torch
sys.path.insert(0, ".")
from utils.aggregate_block.model_trainer_generate import generate_cls_model
out, names, own = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
torch.manual_seed(0)
found = {"shapes": {}, "own": {}}
for name in names:
    with torch.device("meta"):
        state = generate_cls_model(name, 7).state_dict()
    found["shapes"][name] = [(key, tuple(value.shape)) for key, value in state.items()]
for name in own:
    model = generate_cls_model(name, 7).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.uniform_(0.5, 1.5)
    inputs = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found["own"][name] = (model.state_dict(), inputs, model(inputs))
torch.save(found, out)
"""


@pytest.mark.slow
def test_networks_equal_those_of_a_checkout(tmp_path: Path) -> None:
    root = os.environ.get("BACKDOORBENCH_ROOT")
    if not root:
        pytest.skip("needs a checkout of BackdoorBench: set BACKDOORBENCH_ROOT")
    script, out = tmp_path / "theirs.py", tmp_path / "theirs.pt"
    script.write_text(THEIRS, encoding="utf-8")
    launcher = [sys.executable, "-m", "clp_plugin.adapters.backdoorbench.launcher", "run", str(script)]
    names = [" ".join(NAMES), " ".join(OWN)]
    ran = subprocess.run([*launcher, str(out), *names], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs = torch.load(out, weights_only=True)
    for name in NAMES:
        ours = [(key, shape) for key, shape, _ in shapes(on_meta(name).state_dict())]
        assert ours == theirs["shapes"][name], name
    for name, (weights, inputs, outputs) in theirs["own"].items():
        model = build(name, 7)
        model.load_state_dict(weights)
        with torch.no_grad():
            assert torch.allclose(model(inputs), outputs, rtol=1e-5, atol=1e-5 * float(outputs.abs().max())), name


@pytest.mark.parametrize("name", ["preactresnet18", "resnet18", "vgg19_bn", "densenet121", "resnext29"])
def test_networks_of_one_channel_open(name: str) -> None:
    """Users change the first convolution to run MNIST, for which the toolbox itself has no network."""
    torch.manual_seed(0)
    source = build(name, 10, channels=1)
    weights = {f"module.{key}": value for key, value in source.state_dict().items()}
    first = next(value for value in weights.values() if value.ndim == 4)
    assert first.shape[1] == 1
    model = load(name, 10, weights, where="here")
    assert all(torch.equal(weights[f"module.{key}"], value) for key, value in model.state_dict().items())
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(model(image), source(image))
