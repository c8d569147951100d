"""What the run records: owners of channels, execution order, fallbacks, and what it restores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_nets import CASES, Wired, classify, conv
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import PairingError
from clp_plugin.fusion.following import channel_structure
from clp_plugin.fusion.graph import UNKNOWN, ChannelGraph, Node
from clp_plugin.fusion.tracing import trace
from clp_plugin.networks.kinds import is_batchnorm

Build = Callable[..., nn.Module]


def node_of(graph: ChannelGraph, module: str) -> Node:
    return next(node for node in graph.nodes if node.module == module)


def origin(graph: ChannelGraph, module: str) -> list[tuple[str, int]]:
    """(module or operation, channel) of every channel that enters a module."""
    ids = node_of(graph, module).inputs
    if not ids:
        return []
    owner, channel = graph.owners(ids[0])
    names = [graph.nodes[i].module or graph.nodes[i].op if i >= 0 else "?" for i in owner]
    return list(zip(names, channel.tolist(), strict=True))


def through(move: Callable[[Tensor], Tensor], width: int = 4) -> list[tuple[str, int]]:
    """Where the channels of a norm come from when ``move`` stands between a 4-channel convolution and the norm."""
    net = Wired(
        lambda n, x: classify(n, n.bn(move(n.conv1(x)))), conv1=conv(3, 4), bn=nn.BatchNorm2d(width),
        fc=nn.Linear(width, 2),
    )  # fmt: skip
    return origin(trace(net, (3, 8, 8)), "bn")


C = [("conv1", k) for k in range(4)]
MOVES = {
    "identity": (lambda x: x, C),
    "dropout": (lambda x: F.dropout2d(x, training=False), C),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last), C),
    "to another dtype and back": (lambda x: x.double().float(), C),
    "flip": (lambda x: x.flip(1), C[::-1]),
    "roll": (lambda x: x.roll(1, 1), [C[3], *C[:3]]),
    "slice": (lambda x: x[:, 1::2], [C[1], C[3]]),
    "crop": (lambda x: x[:, :, 1:-1, 2:], C),
    "cat with itself": (lambda x: torch.cat([x[:, 2:], x], 1), [C[2], C[3], *C]),
    "shuffle": (lambda x: F.channel_shuffle(x, 2), [C[0], C[2], C[1], C[3]]),
    "there and back": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4).t().reshape(4, -1, 8, 8).transpose(0, 1), C),
    "unbind and stack": (lambda x: torch.stack(x.unbind(1)[::-1], 1), C[::-1]),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), C + C),
    "expand": (lambda x: x[:, :1].expand(-1, 3, -1, -1), [C[0]] * 3),
}


@pytest.mark.parametrize("name", MOVES)
def test_moved_data_keep_their_origin(name: str) -> None:
    move, expected = MOVES[name]
    assert through(move, len(expected)) == expected


COMPUTES = {
    "relu": F.relu,
    "in-place relu": torch.relu_,
    "pool": lambda x: F.max_pool2d(x, 2),
    "sum": lambda x: x + x.flip(0),
    "in-place sum": lambda x: x.add_(1.0),
    "hardswish": F.hardswish,
    "in-place hardswish": lambda x: F.hardswish(x, inplace=True),
    "reflection pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "upsample": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
}


@pytest.mark.parametrize("name", COMPUTES)
def test_computed_values_start_a_node_that_keeps_the_channels_apart(name: str) -> None:
    found = through(COMPUTES[name])
    assert [channel for _, channel in found] == [0, 1, 2, 3]
    assert all(maker not in ("conv1", "?") for maker, _ in found)


def test_in_place_change_of_one_channel_spares_the_others() -> None:
    def change(x: Tensor) -> Tensor:
        x[:, 1:2] *= 2
        return x

    found = through(change)
    assert [found[k] for k in (0, 2, 3)] == [C[0], C[2], C[3]]
    assert found[1][0] != "conv1"


def test_in_place_change_through_a_flat_view_is_seen() -> None:
    assert all(maker != "conv1" for maker, _ in through(lambda x: (x.view(-1).mul_(2.0), x)[1]))


def test_mixing_channels_loses_the_structure() -> None:
    assert through(lambda x: torch.einsum("ij,bjhw->bihw", torch.ones(4, 4, device=x.device), x)) != C


def test_nodes_come_in_execution_order_with_shapes(build: Build) -> None:
    graph = trace(build("shared_conv"), (3, 8, 8))
    modules = [node.module for node in graph.nodes if node.module]
    assert modules == ["conv1", "bn1", "conv1", "bn2", "fc"]
    assert [node.index for node in graph.nodes] == list(range(len(graph.nodes)))
    assert node_of(graph, "conv1").input_shape == (1, 3, 8, 8)
    assert all(parent < node.index for node in graph.nodes for parent in node.parents)
    assert [graph.nodes[i].module for i in graph.outputs] == ["fc"]


def test_owners_of_unknown_channels_are_unknown(build: Build) -> None:
    node, channel = trace(build("plain"), (3, 8, 8)).owners(np.array([UNKNOWN, 0, 2]))
    assert node.tolist() == [UNKNOWN, 0, 0]
    assert channel.tolist() == [UNKNOWN, 0, 2]


def test_a_real_run_is_the_rule_and_meta_tensors_the_fallback(build: Build) -> None:
    class Lacking(nn.Module):
        """A device that lacks a kernel: only what needs no arithmetic runs."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            if not x.is_meta:
                raise NotImplementedError("no kernel")
            classes: Tensor = self.network(x)
            return classes

    real, meta = trace(build("plain"), (3, 8, 8)), trace(Lacking(build("plain")), (3, 8, 8))
    assert (real.how, meta.how) == ("real forward pass", "meta")
    assert [node.op for node in real.nodes] == [node.op for node in meta.nodes]
    assert trace(build("depends_on_data"), (3, 8, 8)).how == "real forward pass"


def test_torch_need_not_import_its_compiler_which_takes_a_second_of_each_command() -> None:
    code = (
        "import sys; from torch import nn; from clp_plugin import fuse, score; "
        "score(fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8))); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: bool(x.sum() > 0), lambda x: x.mean().item() > 0, lambda x: bool((x > 0).any()),
        lambda x: int(x.argmax()) > 3, lambda x: len(x[x > 0]) > 5, lambda x: float(x.numpy().sum()) > 0,
    ],
)  # fmt: skip
def test_every_way_to_look_at_values_is_followed(decide: Callable[[Tensor], bool]) -> None:
    net = Wired(
        lambda n, x: classify(n, n.bn(n.conv1(x if decide(x) else -x))), conv1=conv(3, 4), bn=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 2),
    )  # fmt: skip
    graph = trace(net, (3, 8, 8))
    assert graph.how == "real forward pass"
    assert origin(graph, "bn") == C


def test_modes_random_state_and_attention_switch_are_restored(build: Build) -> None:
    model = build("depends_on_data").train()
    model.bn1.eval()
    state, fast = torch.random.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    trace(model, (3, 8, 8), training_modules=["conv1"])
    assert model.training
    assert not model.bn1.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_modes_are_restored_after_a_failure(build: Build) -> None:
    model = build("plain").train()
    with pytest.raises(PairingError, match="cannot be run on one input"):
        trace(model, (5, 8, 8))
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("wrap", [lambda t: (t, None), lambda t: {"logits": t}, lambda t: [[t]]])
def test_outputs_are_found_inside_containers(wrap: Callable[[Tensor], object]) -> None:
    net = Wired(lambda n, x: wrap(n.fc(x.flatten(1))), fc=nn.Linear(12, 2))
    graph = trace(net, (3, 2, 2))
    assert [graph.nodes[i].module for i in graph.outputs] == ["fc"]


def test_constants_outside_the_parameters_are_followed(build: Build) -> None:
    scale = torch.full((1, 3, 1, 1), 2.0)  # neither parameter nor buffer: stays on the CPU in a meta run
    net = nn.Sequential(Wired(lambda _n, x: x * scale), build("plain"))
    assert origin(trace(net, (3, 8, 8)), "1.bn1") == [("1.conv1", k) for k in range(4)]


def test_what_counts_as_a_norm() -> None:
    assert is_batchnorm(nn.BatchNorm1d(2))
    assert is_batchnorm(nn.SyncBatchNorm(2))
    assert not is_batchnorm(nn.BatchNorm2d(2, track_running_stats=False))
    assert not is_batchnorm(nn.GroupNorm(1, 2))
    assert not is_batchnorm(nn.InstanceNorm2d(2, track_running_stats=True))
    frozen = CASES["frozen_batchnorm"].build()
    assert is_batchnorm(frozen.bn1)


def test_channel_structure_names_the_dimension_that_varies() -> None:
    line = torch.arange(3, dtype=torch.int32)
    dim, ids = channel_structure(line.view(1, 3, 1).expand(2, 3, 4))
    assert (dim, ids.tolist()) == (1, [0, 1, 2])
    dim, ids = channel_structure(line.expand(2, 4, 3))
    assert (dim, ids.tolist()) == (2, [0, 1, 2])
    assert channel_structure(torch.arange(6, dtype=torch.int32).view(2, 3)) is None
    assert channel_structure(torch.tensor(3, dtype=torch.int32)) is None
