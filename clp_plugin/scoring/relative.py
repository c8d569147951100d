"""How large each channel typically is, followed through the view's data flow, for the relative score."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clp_plugin.fusion.graph import UNKNOWN, ChannelGraph, Node
from clp_plugin.scoring.kernels import batchnorm_gamma, kernel
from clp_plugin.types import Floats, Ints

_BOUNDED = ("sigmoid", "hardsigmoid", "tanh", "softmax")


class TypicalScales:
    """Scale of every channel in the graph, ``(total channels,)``, in units of one standard deviation of an image pixel.

    A BatchNorm's channel has scale \\|gamma_k\\|; the image 1; activations and pools keep their input's; a sum adds in
    quadrature; a convolution without BatchNorm has the Frobenius norm of its kernel weighted by its inputs' scales;
    bounded gates, attention and layer norms count as 1. Rescaling a channel and its readers so that the function stays
    the same moves these scales with the channel.

    Source: own (facts of the project: "relative score"); not part of the CLP paper.
    """

    def __init__(self, graph: ChannelGraph, modules: dict[str, nn.Module]) -> None:
        self._graph = graph
        self._modules = modules
        self.values: Floats = np.ones(sum(node.channels for node in graph.nodes))
        for node in graph.nodes:
            self.values[node.first_id : node.first_id + node.channels] = self._scales_of(node)

    def at(self, ids: Ints) -> Floats:
        """Scales of the given channels, ``(C,)``; 1 where the origin is unknown."""
        return np.where(ids == UNKNOWN, 1.0, self.values[np.maximum(ids, 0)])

    def entering(self, node: Node, channels: int) -> Floats:
        """Scales of a node's first input, ``(channels,)``; 1 where it has no channel structure."""
        if not node.inputs or len(node.inputs[0]) != channels:
            return np.ones(channels)
        return self.at(node.inputs[0])

    def _scales_of(self, node: Node) -> Floats | float:
        module = self._modules.get(node.module) if node.module else None
        if node.op == "batchnorm":
            return np.asarray(batchnorm_gamma(self._modules[node.module]).numpy())
        if node.op in ("conv", "linear") and module is not None:
            scaled = scaled_kernel(module, self, node)
            return np.asarray(torch.linalg.vector_norm(scaled.flatten(1), dim=1))
        if not node.channelwise or any(word in node.op for word in _BOUNDED) or "norm" in node.op:
            return 1.0
        return self._scales_of_elementwise(node)

    def _scales_of_elementwise(self, node: Node) -> Floats | float:
        scales = [np.broadcast_to(self.at(ids), node.channels) for ids in node.inputs]
        if not scales:
            return 1.0
        together: NDArray[np.float64] = np.stack(scales)
        if node.op.startswith("mul"):
            return np.asarray(together.prod(axis=0))
        if node.op.startswith(("add", "sub")):
            return np.asarray(np.sqrt((together**2).sum(axis=0)))
        return np.asarray(together.max(axis=0))


def scaled_kernel(module: nn.Module, scales: TypicalScales, node: Node) -> torch.Tensor:
    """W_k * diag(scale of its inputs), ``(K, C_in / groups, *kernel_size)`` float64."""
    weight = kernel(module).double().cpu()
    groups = getattr(module, "groups", 1)
    entering = torch.from_numpy(np.ascontiguousarray(scales.entering(node, weight.shape[1] * groups)))
    per_group = entering.view(groups, 1, weight.shape[1]).expand(groups, weight.shape[0] // groups, weight.shape[1])
    return weight * per_group.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
