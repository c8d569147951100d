"""Weights that no score can be given, and why: kernels that no module holds, and scales that a norm undoes."""

from __future__ import annotations

import numpy as np

from clp_plugin.fusion.graph import ChannelGraph, Node

_UNDO_ANY_SCALE = (
    "batch_norm",
    "group_norm",
)  # by statistics of the data; nn.BatchNorm with statistics is a module's node
_RESCALE = ("mul", "div", "add", "sub", "neg", "rsub")


def unscored(graph: ChannelGraph) -> dict[str, str]:
    """Module name to the reason why it cannot be scored."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "batchnorm":
            found.update(_unfollowed(graph, node))
        elif any(word in node.op for word in _UNDO_ANY_SCALE):
            for conv, count in _convolutions_entering(graph, node):
                part = "" if count == conv.channels else f"{count} of {conv.channels} channels: "
                found[conv.module] = f"{part}{node.op} behind it undoes any scale of its kernel"
        elif node.unknown_kernel and "conv" in node.op:
            found[node.within or "(the network itself)"] = f"its kernel is not that of a convolution module ({node.op})"
    return found


def keep_a_bias(graph: ChannelGraph) -> set[str]:
    """Convolutions with a LayerNorm behind them, which puts something out for a channel of zeros too."""
    norms = (node for node in graph.nodes if "layer_norm" in node.op)
    return {conv.module for norm in norms for conv, _ in _convolutions_entering(graph, norm)}


def _convolutions_entering(graph: ChannelGraph, node: Node) -> list[tuple[Node, int]]:
    """Convolutions whose output an operation reads as it is, with the number of channels that it reads."""
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *node.inputs]))
    owners, counts = np.unique(graph.owners(ids)[0], return_counts=True)
    makers = [(graph.nodes[owner], int(count)) for owner, count in zip(owners, counts, strict=True) if owner >= 0]
    return [(maker, count) for maker, count in makers if maker.op == "conv"]


def _unfollowed(graph: ChannelGraph, norm: Node) -> dict[str, str]:
    """Why the kernel in front of a BatchNorm is not known: for the norm, and for a convolution that it belongs to."""
    found = {}
    for index in np.unique(graph.owners(norm.inputs[0])[0]).tolist() if norm.inputs else []:
        maker = graph.nodes[index] if index >= 0 else None
        operations: list[str] = []
        while maker is not None and _rescales(maker):
            operations.append(maker.op)
            maker = graph.nodes[maker.parents[0]]
        if maker is None or (maker.op not in ("conv", "linear") and not maker.unknown_kernel):
            continue
        if operations and maker.module:
            found[maker.module] = f"{', '.join(operations)} between it and {norm.module} changes its kernel"
            found[norm.module] = f"{', '.join(operations)} between {maker.module} and it changes the kernel"
        elif maker.unknown_kernel:
            found[norm.module] = f"fed by {maker.op}, whose kernel is not that of a convolution module"
    return found


def _rescales(node: Node) -> bool:
    """Whether a node changes one tensor, channel by channel, by constants or parameters."""
    return (
        node.channelwise
        and node.op.rstrip("_").split(".")[0] in _RESCALE
        and len(node.inputs) == 1
        and len(node.parents) == 1
    )
