"""UCLC, the upper bound of the channel Lipschitz constant that a channel's score stands for."""

from __future__ import annotations

import numpy as np
import torch

from clp_plugin.errors import ConfigError
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.scoring.kernels import batchnorm_gain, kernel
from clp_plugin.types import Floats, Scores


def uclc(view: FusedView, scores: Scores) -> dict[str, Floats]:
    """The paper's UCLC: sigma_k times the spectral norms of all layers before.

    Before means upstream in the data flow, so that parallel branches do not count for each other; the norm of a whole
    layer is that of its fused kernels as one ``K x (C_in * positions)`` matrix per group. Within a layer UCLC ranks as
    sigma_k does. It stands for an upper bound of the channel Lipschitz constant as far as the paper's does: reshaped
    kernels approximate the convolution's norm, and where branches meet in a sum a bound would add what this multiplies.

    Returns:
        Layer name to ``(channels,)`` float64; inf where float64 overflows on very deep networks.

    Raises:
        ConfigError: If the view is that of the published pairing, which knows no data flow.

    Source:
        CLP 4.1. Deviation: the product follows the data flow of branched networks, where the paper assumes a chain.
    """
    if view.pairing == "registration":
        raise ConfigError("UCLC needs the data flow: use pairing='dataflow' (within a layer it ranks as sigma_k does)")
    logs = {layer.name: np.log(max(_layer_norm(view, layer), 1e-300)) for layer in view.layers}
    found = {}
    with np.errstate(over="ignore"):
        for name, (above, bare) in _upstream(view).items():
            before = sum(logs[other] for other in above)
            before += sum(np.log(max(_conv_norm(view, conv), 1e-300)) for conv in bare)
            found[name] = np.asarray(scores.sigma[name] * np.exp(before))
    return found


def _layer_norm(view: FusedView, layer: LinearLayer) -> float:
    """Spectral norm of all channels of a layer together."""
    gain = (
        batchnorm_gain(view.modules[layer.norm])
        if layer.norm is not None
        else torch.ones(layer.channels, dtype=torch.float64)
    )
    largest = float(gain[torch.from_numpy(layer.source < 0)].max()) if (layer.source < 0).any() else 0.0
    for position, name in enumerate(layer.conv):
        mine = np.flatnonzero(layer.source == position)
        weight = kernel(view.modules[name]).double().cpu()
        groups = getattr(view.modules[name], "groups", 1)
        group_of = layer.source_channel[mine] // (weight.shape[0] // groups)
        for group in np.unique(group_of):
            members = torch.from_numpy(mine[group_of == group])
            rows = weight[torch.from_numpy(layer.source_channel[members.numpy()])].flatten(1) * gain[members, None]
            largest = max(largest, float(torch.linalg.matrix_norm(rows, ord=2)))
    return largest


def _conv_norm(view: FusedView, name: str) -> float:
    weight = kernel(view.modules[name]).double().cpu()
    groups = weight.chunk(getattr(view.modules[name], "groups", 1))
    return max(float(torch.linalg.matrix_norm(rows.flatten(1), ord=2)) for rows in groups)


def _upstream(view: FusedView) -> dict[str, tuple[set[str], set[str]]]:
    """Find for every layer the layers that its input depends on, and convolutions that reach it past their own norm."""
    parts = {layer.name: set(layer.conv) for layer in view.layers}
    shared = {conv for layer in view.layers if layer.norm is not None for conv in layer.conv}
    upstream: dict[str, tuple[set[str], set[str]]] = {}
    for graph in view.graphs:
        states: list[tuple[set[str], set[str]]] = []
        for node in graph.nodes:
            above = set().union(*(states[p][0] for p in node.parents))
            bare = set().union(*(states[p][1] for p in node.parents))
            name = node.module
            if name in parts:
                bare -= parts[name]
            bare -= set().union(*(parts[layer] for layer in above))
            if name in parts:
                upstream.setdefault(name, (above - {name}, bare))
                above = above | {name}
            elif name in shared:
                bare = bare | {name}
            states.append((above, bare))
    return {layer.name: upstream.get(layer.name, (set(), set())) for layer in view.layers}
