"""The fused view: a model as a list of linear layers, found by following tensors instead of module order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from clp_plugin.errors import PairingError
from clp_plugin.fusion.graph import CONV_TYPES, ChannelGraph, Node, is_norm
from clp_plugin.fusion.tracing import trace
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.types import Ints, LayerKind, Pairing

_POOLS = ("pool", "mean", "sum", "amax")


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """What a score is computed on.

    Attributes:
        name: The module to silence when a channel is pruned: the norm of a fused or diagonal layer, else the conv.
        kind: ``fused`` (conv then BatchNorm), ``diagonal`` (a BatchNorm fed by anything else), ``conv`` (no BatchNorm
            before the next non-linearity), ``head`` (classifier: listed, never pruned).
        conv: Names of the convolutions (or linear maps) that the channels come from; several after a concatenation.
        norm: Name of the BatchNorm, or None.
        channels: K.
        source: ``(K,)`` position in ``conv`` that channel k comes from; -1 where it comes from no convolution.
        source_channel: ``(K,)`` output channel of that convolution; -1 likewise.
        why: One line for people.
    """

    name: str
    kind: LayerKind
    conv: tuple[str, ...]
    norm: str | None
    channels: int
    source: Ints
    source_channel: Ints
    why: str


@dataclass(frozen=True, eq=False)
class FusedView:
    """All linear layers of a model, in the order of execution. ``print(view)`` shows them.

    Attributes:
        model: The bare network (see :func:`clp_plugin.networks.wrappers.unwrap`); the view holds no copy of any weight.
        layers: The linear layers.
        graphs: Which channel every channel depends on: the run in eval mode and, where branches such as auxiliary heads
            open only in training mode, a second run that reaches them; empty for ``registration``.
        pairing: ``dataflow`` or ``registration``.
        inner_linear: Linear modules inside the network that no BatchNorm follows (attention, MLP): not scored.
        unreached: Convolutions and norms that no run executes.
    """

    model: nn.Module
    layers: tuple[LinearLayer, ...]
    graphs: tuple[ChannelGraph, ...]
    pairing: Pairing = "dataflow"
    inner_linear: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def layer(self, name: str) -> LinearLayer:
        """The layer of this name; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def call(self, module: str) -> tuple[int, Node]:
        """The first executed call of a convolution, linear map or norm: which graph it is in, and its node.

        Raises:
            KeyError: If no run executes it.
        """
        for position, graph in enumerate(self.graphs):
            for node in graph.nodes:
                if node.module == module:
                    return position, node
        raise KeyError(module)

    def counts(self) -> dict[str, int]:
        """Number of layers of each kind."""
        kinds = [layer.kind for layer in self.layers]
        return {kind: kinds.count(kind) for kind in ("fused", "diagonal", "conv", "head")}

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=4)
        lines = [f"{'layer':<{width}}  kind      channels  why"]
        lines += [f"{ly.name:<{width}}  {ly.kind:<8}  {ly.channels:>8}  {ly.why}" for ly in self.layers]
        counts = ", ".join(f"{n} {kind}" for kind, n in self.counts().items() if n)
        lines.append(f"{len(self.layers)} layers ({counts or 'none'}); found by {self._how()}")
        if self.inner_linear:
            lines.append(f"{len(self.inner_linear)} linear maps inside the network have no BatchNorm: not scored")
        if self.unreached:
            lines.append(f"never executed: {', '.join(self.unreached)}")
        return "\n".join(lines)

    def _how(self) -> str:
        return (
            f"following the tensors ({self.graphs[0].how})" if self.graphs else "registration order, the published rule"
        )


def fuse(model: nn.Module, input_shape: Sequence[int], *, pairing: Pairing = "dataflow") -> FusedView:
    """Find the linear layers of a model.

    Args:
        model: Any classifier; wrappers are looked through. It is not changed.
        input_shape: Shape of one input without the batch dimension, ``(C, H, W)``.
        pairing: ``dataflow`` follows the tensors; ``registration`` is the rule of the published code (each BatchNorm2d
            with the last Conv2d registered before it), for parity runs.

    Raises:
        PairingError: If the model cannot be run at this input size, or the published rule fails on it.

    Source:
        CLP 4.4 (a Conv-BN block is one linear layer). Deviation: the paper pairs by hand, the published code by
        registration order; BatchNorms fed by sums, pools or activations are diagonal layers of their own.
    """
    network = unwrap(model)
    modules = dict(network.named_modules())
    if pairing == "registration":
        return FusedView(network, _registration_layers(modules), (), pairing, modules=modules)
    graphs = [trace(network, input_shape)]
    layers = _layers(graphs[0])
    wanted = {name for name, m in modules.items() if is_norm(m) or isinstance(m, CONV_TYPES)}
    if owners := _owners(wanted - _executed(graphs[0]), graphs[0]):
        graphs += _graphs_in_training(network, input_shape, owners)
        known = {layer.name for layer in layers}
        for graph in graphs[1:]:
            extra = (layer for layer in _layers(graph) if layer.name not in known)
            layers += [replace(layer, why=f"{layer.why}; training only") for layer in extra]
    executed = set().union(*map(_executed, graphs))
    scored = {part for layer in layers for part in (layer.name, *layer.conv)}
    inner = {name for name in executed if isinstance(modules[name], nn.Linear)} - scored
    return FusedView(
        network, tuple(layers), tuple(graphs), pairing, tuple(sorted(inner)), tuple(sorted(wanted - executed)), modules
    )


def _layers(graph: ChannelGraph) -> list[LinearLayer]:
    calls: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.module:
            calls[node.module].append(node)
    norms = {name: _norm_layer(graph, name, nodes) for name, nodes in calls.items() if nodes[0].op == "norm"}
    fused_convs = {conv for layer in norms.values() for conv in layer.conv}
    heads = _heads(graph, fused_convs)
    layers = []
    for name, nodes in calls.items():
        if name in norms:
            layers.append(norms[name])
        elif name in heads:
            layers.append(_lone_layer(name, nodes[0], "head", "classifier head: listed, not pruned"))
        elif nodes[0].op == "conv" and name not in fused_convs:
            layers.append(_lone_layer(name, nodes[0], "conv", "no BatchNorm before the next non-linearity or sum"))
    return layers


def _lone_layer(name: str, node: Node, kind: LayerKind, why: str) -> LinearLayer:
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
    """Which convolution's which channel each channel of a norm's input is."""
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


def _heads(graph: ChannelGraph, fused_convs: set[str]) -> set[str]:
    """Linear maps and convolutions from which only element-wise operations, and for convolutions pools, lead out."""
    heads: set[str] = set()
    todo = [(index, False) for index in graph.outputs]
    seen = set(todo)
    while todo:
        index, behind_linear = todo.pop()
        node = graph.nodes[index]
        if node.op == "linear" and node.module not in fused_convs:
            heads.add(node.module)
            behind_linear = True
        elif node.op == "conv" and node.module not in fused_convs and not behind_linear:
            heads.add(node.module)
            continue
        elif not _leads_on(node, behind_linear):
            continue
        for step in ((parent, behind_linear) for parent in node.parents):
            if step not in seen:
                seen.add(step)
                todo.append(step)
    return heads


def _leads_on(node: Node, behind_linear: bool) -> bool:
    is_pool = any(word in node.op for word in _POOLS)
    return node.channelwise and len(node.parents) == 1 and "norm" not in node.op and not (is_pool and behind_linear)


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


def _registration_layers(modules: dict[str, nn.Module]) -> tuple[LinearLayer, ...]:
    """The published rule: each BatchNorm2d with the last Conv2d in module order, whatever the data flow."""
    layers = []
    last: tuple[str, nn.Conv2d] | None = None
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            last = (name, module)
        elif isinstance(module, nn.BatchNorm2d):
            k = module.num_features
            if last is None or k > last[1].out_channels or module.weight is None or module.running_var is None:
                found = "no convolution" if last is None else f"{last[0]} with {last[1].out_channels} channels"
                raise PairingError(
                    f"the published rule cannot pair {name} ({k} channels): the last convolution before it is {found}, "
                    "or the norm has no weight or running variance; the published code crashes here, use pairing='dataflow'"
                )
            layers.append(
                LinearLayer(
                    name, "fused", (last[0],), name, k, np.zeros(k, np.int64), np.arange(k, dtype=np.int64),
                    f"last Conv2d registered before it is {last[0]}",
                )
            )  # fmt: skip
    return tuple(layers)
