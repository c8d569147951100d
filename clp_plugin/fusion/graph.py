"""The record of a traced run: which channel of which operation every channel depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clp_plugin.types import Ints

UNKNOWN = -1


@dataclass(frozen=True)
class Node:
    """One operation of the traced run.

    Attributes:
        index: Position in execution order.
        op: ``input``, ``conv``, ``linear``, ``batchnorm`` for modules that matter; else the name of the aten operation.
        module: Name of the module (for conv, linear, batchnorm), else "".
        first_id: Global number of the node's channel 0.
        channels: Number of channels; 1 where the output has no channel structure.
        inputs: Global channel numbers ``(C_in,)`` of every tensor input that has a channel structure.
        parents: Indices of all nodes that any input element comes from.
        channelwise: Whether output channel k depends on channel k of each input only.
        input_shape: Shape of the first input, batch included.
        unknown_kernel: Whether it mixes channels by weights that belong to no convolution or linear map that is known, as
            ``F.conv2d`` in a module of one's own and deformable convolutions do.
        within: Name of the innermost module that ran it.
    """

    index: int
    op: str
    module: str
    first_id: int
    channels: int
    inputs: tuple[Ints, ...]
    parents: tuple[int, ...]
    channelwise: bool
    input_shape: tuple[int, ...]
    unknown_kernel: bool = False
    within: str = ""


@dataclass
class ChannelGraph:
    """All nodes of one run.

    Attributes:
        nodes: The operations, in the order of execution.
        outputs: Indices of the nodes that the model's output is made of.
        logits: Global channel numbers ``(classes,)`` of the logits and of other outputs as wide, those of auxiliary
            classifiers.
        how: One phrase on how the model was run.
    """

    nodes: list[Node] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    logits: list[Ints] = field(default_factory=list)
    how: str = ""

    def owners(self, ids: Ints) -> tuple[Ints, Ints]:
        """Node index and channel within the node for global channel numbers ``(C,)``; -1 where unknown."""
        firsts = np.array([n.first_id for n in self.nodes], dtype=np.int64)
        node = np.searchsorted(firsts, ids, side="right").astype(np.int64) - 1
        channel = np.where(ids == UNKNOWN, UNKNOWN, ids - firsts[np.maximum(node, 0)])
        return np.where(ids == UNKNOWN, UNKNOWN, node), channel
