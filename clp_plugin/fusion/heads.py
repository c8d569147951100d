"""The layers that put out the logits, which are never pruned: each of their channels is a class."""

from __future__ import annotations

import numpy as np

from clp_plugin.fusion.graph import ChannelGraph, Node
from clp_plugin.types import Ints


def heads_of(graph: ChannelGraph) -> set[str]:
    """Convolutions, linear maps and BatchNorms whose channels are the logits' channels.

    The way leads back from the logits through element-wise operations, norms and pools, and ends at the first convolution or
    linear map of each branch. Operands of another width, such as an attention map that weights a pool, are not followed.
    """
    heads: set[str] = set()
    seen: set[int] = set()
    todo = list(graph.logits)
    while todo:
        for index in np.unique(graph.owners(todo.pop())[0]).tolist():
            if index < 0 or index in seen:
                continue
            seen.add(index)
            node = graph.nodes[index]
            if node.module:
                heads.add(node.module)
            todo += _inputs_passed_on(graph, node)
    return heads


def _inputs_passed_on(graph: ChannelGraph, node: Node) -> list[Ints]:
    """Channels that a node carries on, one by one."""
    if node.op == "batchnorm" or node.channelwise:
        return [ids for ids in node.inputs if len(ids) == node.channels]
    if node.module or node.unknown_kernel:
        return []
    # Where no dimension tells the channels apart, as in a mean over stacked branches, the width is what there is to go by.
    width = len(graph.logits[0])
    parents = (graph.nodes[index] for index in node.parents)
    return [np.arange(p.first_id, p.first_id + width) for p in parents if p.channels == width]
