"""The published pairing, for parity runs, and what it would do on a network, in one line for people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from clp_plugin.errors import PairingError
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.networks.wrappers import unwrap

_SHOWN = 3  # names in the note


@dataclass(frozen=True)
class _Pair:
    """A BatchNorm2d and the last Conv2d registered before it, if there is one."""

    name: str
    norm: nn.BatchNorm2d
    conv_name: str
    conv: nn.Conv2d | None


def registration_layers(network: nn.Module) -> tuple[LinearLayer, ...]:
    """Pair each BatchNorm2d with the last Conv2d in module order, whatever the data flow.

    Raises:
        PairingError: If the published code would crash on the network for want of a convolution, channel or statistic.
    """
    layers = []
    for pair in _pairs(network):
        if reason := _has_no_partner(pair):
            raise PairingError(
                f"the published rule cannot pair {pair.name}: {reason}; the published code crashes here, use "
                "pairing='dataflow'"
            )
        k = pair.norm.num_features
        source, channel = np.zeros(k, np.int64), np.arange(k, dtype=np.int64)
        why = f"last Conv2d registered before it is {pair.conv_name}"
        layers.append(LinearLayer(pair.name, "fused", (pair.conv_name,), pair.name, k, source, channel, why))
    return tuple(layers)


def published_rule_note(model: nn.Module, view: FusedView) -> str:
    """Compare the published rule with the tensors' true paths.

    Args:
        model: The network that would be repaired, wrapped or not.
        view: The linear layers of the same network, found with ``pairing="dataflow"``.

    Returns:
        Say in one line that the rule is right here, how many BatchNorms it pairs with a convolution that does not feed
        them, why the published code crashes, or that it does nothing. BatchNorms that no run reaches are not counted.

    Source:
        The authors' code: each BatchNorm2d with the last Conv2d before it in ``named_modules()``; its gain has no eps.
    """
    pairs = _pairs(unwrap(model))
    if not pairs:
        return "the published rule does nothing here, silently: there is no BatchNorm2d"
    layers = {layer.name for layer in view.layers}
    reached = [pair for pair in pairs if pair.name in layers]
    wrong = [pair.name for pair in reached if not _is_fed_by(view, pair)]
    reason = next((reason for pair in pairs if (reason := _crash(pair))), "")
    if reason:
        also = f"; its rule is wrong for {len(wrong)} of {len(reached)} BatchNorms" if wrong else ""
        return f"the published code crashes here: {reason}{also}"
    if wrong:
        names = ", ".join(wrong[:_SHOWN]) + (", ..." if len(wrong) > _SHOWN else "")
        return (
            f"the published rule pairs {len(wrong)} of {len(reached)} BatchNorms with a convolution that does not feed "
            f"them ({names})"
        )
    return f"the published rule is right here: all {len(reached)} BatchNorms are fed by the convolution before them"


def _pairs(network: nn.Module) -> list[_Pair]:
    found: list[_Pair] = []
    last: tuple[str, nn.Conv2d | None] = ("", None)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            last = (name, module)
        elif isinstance(module, nn.BatchNorm2d):
            found.append(_Pair(name, module, *last))
    return found


def _is_fed_by(view: FusedView, pair: _Pair) -> bool:
    layer = view.layer(pair.name)
    straight = np.array_equal(layer.source_channel, np.arange(layer.channels))
    return layer.conv == (pair.conv_name,) and bool((layer.source == 0).all()) and straight


def _has_no_partner(pair: _Pair) -> str:
    """Why the published code finds nothing to multiply at this pair, or ""."""
    name, norm, conv = pair.name, pair.norm, pair.conv
    if conv is None:
        return f"no Conv2d is registered before {name}"
    if norm.weight is None or norm.running_var is None:
        return f"{name} has no {'weight' if norm.weight is None else 'running variance'}"
    if norm.num_features > conv.out_channels:
        return (
            f"{name} has {norm.num_features} channels, the last convolution before it ({pair.conv_name}) "
            f"{conv.out_channels}"
        )
    return ""


def _crash(pair: _Pair) -> str:
    """Why the published code fails at this pair, or ""."""
    reason = _has_no_partner(pair)
    name, norm, conv = pair.name, pair.norm, pair.conv
    if reason or conv is None or norm.running_var is None:
        return reason
    if norm.weight.is_meta or conv.weight.is_meta:
        return ""
    if dead := int((norm.running_var == 0).sum()):
        return f"running_var of {name} is 0 in {dead} channel{'s' if dead > 1 else ''}"
    values = (norm.weight, norm.running_var, conv.weight[: norm.num_features])
    if not all(bool(torch.isfinite(value).all()) for value in values):
        return f"the weights of {name} or {pair.conv_name} hold NaN or Inf"
    return ""
