"""Find the linear layers of a model by following its tensors instead of module order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from clp_plugin.errors import PairingError
from clp_plugin.fusion.graph import ChannelGraph, Node
from clp_plugin.fusion.heads import heads_of
from clp_plugin.fusion.published import registration_layers
from clp_plugin.fusion.tracing import trace
from clp_plugin.fusion.unscored import keep_a_bias, unscored
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.networks.kinds import CONV_TYPES, is_batchnorm
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.types import Ints, LayerKind, Pairing

_HEAD = "classifier head: listed, not pruned"
_UNNORMED = "no BatchNorm before the next non-linearity or sum"


def fuse(model: nn.Module, input_shape: Sequence[int], *, pairing: Pairing = "dataflow") -> FusedView:
    """Find the linear layers of a model.

    Args:
        model: Any classifier; wrappers are looked through. It is not changed.
        input_shape: Shape of one input without the batch dimension, ``(C, H, W)``.
        pairing: ``dataflow`` follows the tensors; ``registration`` is the rule of the published code (each BatchNorm2d
            with the last Conv2d registered before it), for parity runs.

    Raises:
        PairingError: If the model cannot be run at this input size, runs none of its own modules, or the published rule
            fails on it.

    Source:
        CLP 4.4 (a Conv-BN block is one linear layer). Deviation: the paper pairs by hand, the published code by
        registration order; BatchNorms fed by sums, pools or activations are diagonal layers of their own.

    Example:
        >>> from clp_plugin import fuse
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> [(layer.name, layer.kind) for layer in fuse(model, (3, 3, 3)).layers]
        [('1', 'fused'), ('4', 'head')]
    """
    network = unwrap(model)
    modules = dict(network.named_modules())
    if pairing == "registration":
        return FusedView(network, registration_layers(network), (), pairing, modules=modules)
    graphs = [trace(network, input_shape)]
    layers, left_out = _layers(graphs[0]), unscored(graphs[0])
    wanted = {name for name, m in modules.items() if is_batchnorm(m) or isinstance(m, CONV_TYPES)}
    if owners := _owners(wanted - _executed(graphs[0]), graphs[0]):
        graphs += _graphs_in_training(network, input_shape, owners)
        known = {layer.name for layer in layers}
        for graph in graphs[1:]:
            extra = (layer for layer in _layers(graph) if layer.name not in known)
            layers += [replace(layer, why=f"{layer.why}; training only") for layer in extra]
            left_out = unscored(graph) | left_out
    executed = set().union(*map(_executed, graphs))
    if wanted and not executed:
        raise PairingError(
            "none of the network's convolutions and BatchNorms ran: its forward calls modules of another object, as a function "
            "does that was put in the place of forward; make it a method of the class"
        )
    scored = {part for layer in layers for part in (layer.name, *layer.conv)}
    inner = {name for name in executed if isinstance(modules[name], nn.Linear)} - scored
    listed = {layer.name for layer in layers}
    return FusedView(
        network, tuple(layers), tuple(graphs), pairing, tuple(sorted(inner)), tuple(sorted(wanted - executed)),
        {name: why for name, why in left_out.items() if name not in listed}, modules,
    )  # fmt: skip


def _layers(graph: ChannelGraph) -> list[LinearLayer]:
    calls: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.module:
            calls[node.module].append(node)
    norms = {name: _norm_layer(graph, name, nodes) for name, nodes in calls.items() if nodes[0].op == "batchnorm"}
    fused_convs = {conv for layer in norms.values() for conv in layer.conv}
    heads, left_out, biased = heads_of(graph), unscored(graph), keep_a_bias(graph)
    layers = []
    for name, nodes in calls.items():
        if name in norms and name in heads:
            layers.append(replace(norms[name], kind="head", why=f"{_HEAD}; {norms[name].why}"))
        elif name in heads and name not in fused_convs:
            layers.append(_unnormed_layer(name, nodes[0], "head", _HEAD))
        elif name in left_out:
            continue
        elif name in norms:
            layers.append(norms[name])
        elif nodes[0].op == "conv" and name not in fused_convs:
            bias = "a LayerNorm behind it puts out its bias for a silent channel" if name in biased else ""
            layers.append(replace(_unnormed_layer(name, nodes[0], "conv", _UNNORMED), unprunable=bias))
    return layers


def _unnormed_layer(name: str, node: Node, kind: LayerKind, why: str) -> LinearLayer:
    k = node.channels
    return LinearLayer(name, kind, (name,), None, k, np.zeros(k, np.int64), np.arange(k, dtype=np.int64), why)


def _norm_layer(graph: ChannelGraph, name: str, nodes: list[Node]) -> LinearLayer:
    """One layer per BatchNorm: fused with what feeds it, channel by channel, or diagonal."""
    k = nodes[0].channels
    feeds = [_conv_feed(graph, node) for node in nodes]
    names, source, channel = feeds[0]
    differ = any(f[0] != names or not (f[1] == source).all() or not (f[2] == channel).all() for f in feeds[1:])
    if differ:
        names, source, channel = (), np.full(k, -1, np.int64), np.full(k, -1, np.int64)
    if not names:
        why = "called with different inputs" if differ else f"fed by {_fed_by(graph, nodes[0])}"
        return LinearLayer(name, "diagonal", (), name, k, source, channel, why)
    own = int((source < 0).sum())
    why = f"fed by {names[0]}" if len(names) == 1 else f"fed by a concatenation of {len(names)} convolutions"
    if own:
        why += f"; {own} of {k} channels come from {_fed_by(graph, nodes[0])} (diagonal)"
    return LinearLayer(name, "fused", names, name, k, source, channel, why)


def _conv_feed(graph: ChannelGraph, node: Node) -> tuple[tuple[str, ...], Ints, Ints]:
    """Find the convolution, and the channel of it, that each channel of a norm's input comes from."""
    unknown = np.full(node.channels, -1, np.int64)
    if not node.inputs or len(node.inputs[0]) != node.channels:
        return (), unknown, unknown
    owner, channel = graph.owners(node.inputs[0])
    maker = [graph.nodes[i] if i >= 0 else None for i in owner]
    of_conv = [m.module if m is not None and m.op in ("conv", "linear") else "" for m in maker]
    names = tuple(dict.fromkeys(n for n in of_conv if n))
    source = np.array([names.index(n) if n else -1 for n in of_conv], dtype=np.int64)
    return names, source, np.where(source < 0, -1, channel)


def _fed_by(graph: ChannelGraph, node: Node) -> str:
    ops = {
        graph.nodes[p].module or graph.nodes[p].op for p in node.parents if graph.nodes[p].op not in ("conv", "linear")
    }
    return ", ".join(sorted(ops)[:3]) + (", ..." if len(ops) > 3 else "") or "a tensor of unknown origin"


def _executed(graph: ChannelGraph) -> set[str]:
    return {node.module for node in graph.nodes if node.module}


def _owners(missed: set[str], graph: ChannelGraph) -> list[str]:
    """The deepest executed ancestors of modules that were not executed: their ``training`` flag may open a branch."""
    executed = _executed(graph)
    owners = set()
    for name in missed:
        parts = name.split(".")
        ancestors = [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
        owners.add(next((a for a in ancestors if any(e.startswith(f"{a}.") for e in executed)), ""))
    return sorted(owners)


def _graphs_in_training(network: nn.Module, input_shape: Sequence[int], owners: list[str]) -> list[ChannelGraph]:
    try:
        return [trace(network, input_shape, training_modules=owners)]
    except PairingError:  # the branch is closed in training too; its modules are reported as never executed
        return []
