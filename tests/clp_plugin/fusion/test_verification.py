"""The check of a view passes on right views and fails on every kind of wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_nets import CASES, Case, Wired, classify, conv
from torch import nn

from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.verification import verify
from clp_plugin.fusion.view import FusedView, LinearLayer

Build = Callable[..., nn.Module]
NOT_REPLACEABLE = {"shared_block": ("bn",), "shared_conv": ("bn1", "bn2"), "flattened_into_1d_norms": ("bn1",)}


def swapped(view: FusedView, name: str, **changes: object) -> FusedView:
    layers = tuple(replace(layer, **changes) if layer.name == name else layer for layer in view.layers)
    return replace(view, layers=layers)


def test_right_view_passes(case: Case, net: nn.Module) -> None:
    view = fuse(net, case.shape)
    result = verify(view, case.shape)
    executed = {node.module for node in view.graphs[0].nodes}
    fused = [layer.name for layer in view.layers if layer.kind == "fused" and layer.name in executed]
    assert result.passed, result
    assert result.skipped == NOT_REPLACEABLE.get(case.name, ())
    assert result.replaced == len(fused) - len(result.skipped)
    again = {"shared_block": 1, "shared_conv": 2}.get(case.name, 0)
    assert result.perturbed == len(fused) - again


def test_checking_leaves_the_model_as_it_was(case: Case, net: nn.Module) -> None:
    before = {name: t.clone() for name, t in net.state_dict().items()}
    verify(fuse(net, case.shape), case.shape)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def two_branches() -> nn.Module:
    """Two convolutions of one shape, so that only their numbers tell them apart."""
    return Wired(
        lambda n, x: classify(n, torch.cat([n.bn1(n.conv1(x)).relu(), n.bn2(n.conv2(x)).relu()], 1)),
        conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(3, 4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(8, 3),
    ).eval()  # fmt: skip


def test_wrong_convolution_is_caught_by_both_experiments() -> None:
    view = fuse(two_branches(), (3, 8, 8))
    result = verify(swapped(view, "bn2", conv=("conv1",)), (3, 8, 8))
    assert result.error > 1e-3
    assert result.wrong == ("bn2",)


def test_convolution_that_runs_after_its_norm_is_caught() -> None:
    view = fuse(two_branches(), (3, 8, 8))
    result = verify(swapped(view, "bn1", conv=("conv2",)), (3, 8, 8))
    assert not result.passed
    assert result.wrong == ("bn1",)


def test_swapped_channels_are_caught_by_both_experiments(build: Build) -> None:
    view = fuse(build("plain"), (3, 8, 8))
    result = verify(swapped(view, "bn2", source_channel=np.array([1, 2, 3, 4, 5, 0])), (3, 8, 8))
    assert result.error > 1e-3
    assert result.wrong == ("bn2",)


def test_wrong_position_in_a_concatenation_is_caught(build: Build) -> None:
    view = fuse(build("dense"), (3, 8, 8))
    layer: LinearLayer = view.layer("bn2")
    result = verify(
        swapped(view, "bn2", source=layer.source[::-1].copy(), source_channel=layer.source_channel[::-1].copy()),
        (3, 8, 8),
    )
    assert not result.passed


@pytest.mark.parametrize("name", ["pre_activation", "sum_through_a_view"])
def test_sum_passed_off_as_a_convolution_is_caught(name: str, build: Build) -> None:
    view = fuse(build(name), (3, 8, 8))
    norm = next(layer.name for layer in view.layers if layer.kind == "diagonal")
    lie = {"kind": "fused", "conv": ("conv2",), "source": np.zeros(4, np.int64), "source_channel": np.arange(4)}
    assert verify(swapped(view, norm, **lie), CASES[name].shape).error > 1e-3


def test_same_seed_same_result(build: Build) -> None:
    view = fuse(build("residual_in_place"), (3, 8, 8))
    assert verify(view, (3, 8, 8), seed=3) == verify(view, (3, 8, 8), seed=3)


def test_norm_without_bias() -> None:
    try:
        norm = nn.BatchNorm2d(4, bias=False)
    except TypeError:
        pytest.skip("this torch has no BatchNorm without bias")
    net = Wired(lambda n, x: classify(n, n.bn(n.conv1(x)).relu()), conv1=conv(3, 4), bn=norm, fc=nn.Linear(4, 2)).eval()
    assert verify(fuse(net, (3, 8, 8)), (3, 8, 8)).passed
