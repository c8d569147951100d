"""The networks of the built-in bench."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from clp_plugin.adapters.builtin.models.build import BUILDERS, build
from clp_plugin.errors import ConfigError

# Parameters of the well-known CIFAR implementations at full width; VGG's without the biases of its convolutions.
KNOWN_SIZES = {
    "resnet18": 11_173_962,
    "resnet20": 269_722 + 2_752,  # that of the paper plus its two 1x1 shortcuts with BatchNorm (option B)
    "resnet34": 21_282_122,
    "preactresnet18": 11_171_146,
    "senet18": 11_260_354,
    # resnet20, whose BatchNorms after shortcuts are missing and whose first ones of a stage are over fewer channels (288),
    # and three times (49, 162, 580) of squeeze and excitation.
    "senet20": 272_474 - 288 + 2_373,
    "vgg11_bn": 9_231_114 - 2_752,
    "vgg16_bn": 14_728_266 - 4_224,
    "vgg19_bn": 20_040_522 - 5_504,
    "wrn16_1": 175_066,
}


def test_every_builder_has_a_known_size() -> None:
    assert set(KNOWN_SIZES) == set(BUILDERS)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_number_of_parameters_is_that_of_the_published_network(name: str) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == KNOWN_SIZES[name]


def test_network_on_the_meta_device_draws_no_numbers() -> None:
    class NothingDrawn(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert getattr(function, "__name__", "") != "normal_"
            return function(*args, **(kwargs or {}))

    with torch.device("meta"), NothingDrawn():
        build("resnet20", num_classes=10)
    with pytest.raises(AssertionError), NothingDrawn():
        build("resnet20", num_classes=10)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("size", [8, 33, 64])
def test_any_width_classes_and_image_size(name: str, size: int) -> None:
    model = build(name, num_classes=7, width=3).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["conv1", "bn1", "layer2.0.conv1", "layer2.0.bn1", "layer2.0.shortcut.0", "layer2.0.shortcut.1"]),
        (
            "preactresnet18",
            ["conv1", "layer1.0.bn1", "layer1.0.conv2", "layer4.1.bn2", "layer3.0.shortcut.0", "linear"],
        ),
        ("senet18", ["conv1", "bn1", "layer1.0.fc1", "layer1.0.fc2", "layer2.0.shortcut.0", "linear"]),
        ("wrn16_1", ["conv1", "bn1", "layer1.0.bn1", "layer3.1.conv2", "layer2.0.shortcut.0", "linear"]),
        ("vgg16_bn", ["features.0", "features.1", "features.40", "features.41", "classifier"]),
    ],
)
def test_modules_have_the_names_of_published_checkpoints(name: str, expected: list[str]) -> None:
    names = dict(build(name, num_classes=10, width=2).named_modules())
    assert [module for module in expected if module not in names] == []


def test_preactivation_has_no_norm_at_its_ends() -> None:
    names = dict(build("preactresnet18", num_classes=10, width=2).named_modules())
    assert "bn1" not in names
    assert "layer2.0.shortcut.1" not in names


def test_blocks_decide_the_depth_and_may_come_from_json() -> None:
    model = build("resnet18", num_classes=10, width=2, blocks=[1, 3])
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 1 + 2 * 4 + 1


def test_squeeze_and_excitation_scales_the_branch() -> None:
    block = build("senet18", num_classes=10, width=4).get_submodule("layer1.0").eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        block.fc2.weight.zero_()
        block.fc2.bias.fill_(-1e9)  # closed gate: only the shortcut is left
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18"])
def test_a_block_whose_last_weights_are_zero_passes_its_input(name: str) -> None:
    block = build(name, num_classes=10, width=4).get_submodule("layer1.1").eval()
    last = block.bn2 if name == "resnet18" else block.conv2
    x = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        last.weight.zero_()
        assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "unknown model 'resnet19'; known: .*resnet18"),
        (
            {"name": "vgg16_bn", "blocks": (1,)},
            "unknown option of model 'vgg16_bn' 'blocks'; known: num_classes, width",
        ),
        ({"name": "resnet18", "width": 0}, "at least 1, found 0"),
        ({"name": "resnet18", "width": "64"}, "whole number for width, found '64'"),
        ({"name": "resnet18", "blocks": ()}, r"at least 1, found 64 and \[\]"),
        ({"name": "resnet18", "blocks": 2}, "expected blocks like"),
        ({"name": "resnet18", "num_classes": 0}, "at least one class"),
    ],
)
def test_impossible_options_are_told(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**{"num_classes": 10, **arguments})  # type: ignore[arg-type]
