"""The note on the published rule against a table that was made with hooks on the toolbox's own networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from clp_plugin.adapters.backdoorbench.models import build as build_named
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.published import published_rule_note

SHAPE = (3, 32, 32)
# Network, BatchNorms, how many of them are not fed by the last convolution registered before them.
TABLE = [
    ("preactresnet18", 16, 7),
    ("senet18", 17, 8),
    ("resnet18", 20, 0),
    ("mobilenet_v2", 52, 0),
    ("mobilenet_v3_large", 46, 0),
    ("vgg19_bn", 16, 0),
]
CRASHES = [
    ("densenet121", 121, 62, "features.denseblock1.denselayer2.norm1 has 96 channels", ".conv2) 32"),
    ("densenet161", 161, 82, "features.denseblock1.denselayer2.norm1 has 144 channels", ".conv2) 48"),
]


def note(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> str:
    return published_rule_note(model, fuse(model, shape))


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_named(name, 10)


@pytest.mark.parametrize(("name", "norms", "wrong"), TABLE)
def test_counts_are_those_of_the_table(name: str, norms: int, wrong: int) -> None:
    said = note(on_meta(name))
    if wrong:
        assert f"pairs {wrong} of {norms} BatchNorms with a convolution that does not feed them" in said
    else:
        assert (
            said == f"the published rule is right here: all {norms} BatchNorms are fed by the convolution before them"
        )
    assert "\n" not in said


def test_it_names_the_first_wrong_ones() -> None:
    assert note(on_meta("preactresnet18")).endswith("(layer1.1.bn1, layer2.0.bn1, layer2.1.bn1, ...)")


@pytest.mark.parametrize(("name", "norms", "wrong", "norm", "conv"), CRASHES)
def test_it_says_where_the_published_code_crashes(name: str, norms: int, wrong: int, norm: str, conv: str) -> None:
    said = note(on_meta(name))
    assert said.startswith("the published code crashes here: ")
    assert norm in said
    assert conv in said
    assert f"wrong for {wrong} of {norms} BatchNorms" in said


def test_networks_without_batchnorm_are_left_as_they_are_without_a_word(build: Callable[..., nn.Module]) -> None:
    said = note(build("no_norm"), (3, 8, 8))
    assert "does nothing here, silently" in said


def test_values_that_crash_the_published_code_are_named(build: Callable[..., nn.Module]) -> None:
    model = build("plain")
    assert "is right here: all 2" in note(model, (3, 8, 8))
    dead = copy.deepcopy(model)
    dead.get_submodule("bn2").running_var[1] = 0
    assert "crashes here: running_var of bn2 is 0 in 1 channel" in note(dead, (3, 8, 8))
    broken = copy.deepcopy(model)
    broken.get_submodule("conv1").weight.data[0, 0, 0, 0] = float("nan")
    assert "crashes here: the weights of bn1 or conv1 hold NaN or Inf" in note(broken, (3, 8, 8))


def test_norms_that_the_published_code_cannot_read_are_named(build: Callable[..., nn.Module]) -> None:
    assert "crashes here: bn1 has no weight" in note(build("norm_without_affine"), (3, 8, 8))
    assert "crashes here: bn2 has no running variance" in note(build("norm_without_statistics"), (3, 8, 8))
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).eval()
    assert "crashes here: no Conv2d is registered before 0" in note(first, (3, 8, 8))


def test_wrappers_are_looked_through() -> None:
    model = on_meta("preactresnet18")
    assert published_rule_note(nn.DataParallel(model), fuse(model, SHAPE)) == note(model)
