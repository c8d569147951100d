"""The hash of a network: equal for copies, another after any change that may change what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from fake_records import TinyNet, shaken
from torch import nn

from clp_plugin.networks.fingerprint import fingerprint


class Bounded(TinyNet):
    """Other code with the same weights."""


def halve(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output / 2


def one_weight(network: nn.Module) -> None:
    with torch.no_grad():
        network.get_parameter("conv2.weight")[3, 2, 1, 0] += 1e-3


def one_statistic(network: nn.Module) -> None:
    network.get_buffer("bn1.running_var")[4] *= 2


def a_setting(network: nn.Module) -> None:
    network.get_submodule("bn_sum").eps = 0.1


def a_hook(network: nn.Module) -> None:
    network.get_submodule("bn1").register_forward_hook(halve)


def its_code(network: nn.Module) -> None:
    network.__class__ = Bounded


def its_precision(network: nn.Module) -> None:
    network.bfloat16()


def a_part(network: nn.Module) -> None:
    network.linear = nn.Sequential(nn.Hardtanh(), network.get_submodule("linear"))


def two_tied_weights(network: nn.Module) -> None:
    network.get_submodule("bn_sum").weight = network.get_submodule("bn1").weight


def test_copies_have_the_same() -> None:
    network = shaken(TinyNet())
    found = fingerprint(network)
    assert found is not None
    assert found == fingerprint(copy.deepcopy(network)) == fingerprint(shaken(TinyNet()))


@pytest.mark.parametrize(
    "change", [one_weight, one_statistic, a_setting, a_hook, its_code, its_precision, a_part, two_tied_weights]
)
def test_whatever_changes_the_network_changes_it(change: Callable[[nn.Module], None]) -> None:
    network = shaken(TinyNet())
    before = fingerprint(network)
    change(network)
    assert before != fingerprint(network) != None  # noqa: E711


def test_a_network_that_cannot_be_written_down_has_none() -> None:
    network = shaken(TinyNet())
    network.get_submodule("bn1").register_forward_hook(lambda *_: None)
    assert fingerprint(network) is None
