"""What the published pairing, "the last convolution registered before each BatchNorm", would do on a given network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from clp_plugin.fusion import FusedView
from clp_plugin.wrappers import unwrap

_NAMED = 3  # wrongly paired layers written out


def published_rule_note(model: nn.Module, view: FusedView) -> str:
    """One line for people: where the published code pairs wrongly, crashes, or does nothing on this network.

    Args:
        model: The network, wrapped or not.
        view: Its dataflow view, which knows what feeds each BatchNorm.

    Source:
        The rule of CLP's public code and its copies: over ``named_modules()``, each ``nn.BatchNorm2d`` goes with the
        ``nn.Conv2d`` seen last; std without eps.
    """
    network = unwrap(model)
    pairs = list(_pairs(network))
    if not pairs:
        return "the published code would do nothing here, without a word: there is no BatchNorm2d"
    wrong = [norm for norm, conv in pairs if not _feeds(view, norm, conv)]
    modules: dict[str, Any] = dict(network.named_modules())
    crash = next((reason for norm, conv in pairs if (reason := _crash(modules, norm, conv))), "")
    total = f"{len(pairs)} BatchNorms"
    if not wrong:
        said = f"the published rule pairs rightly here: all {total} are fed by the convolution registered before them"
    else:
        named = ", ".join(wrong[:_NAMED]) + ", ..." * (len(wrong) > _NAMED)
        said = f"the published rule is wrong for {len(wrong)} of {total} here: no such convolution feeds {named}"
    return f"{said}; the published code would crash: {crash}" if crash else said


def _pairs(network: nn.Module) -> Iterator[tuple[str, str | None]]:
    """Each BatchNorm2d with the convolution registered last before it."""
    conv: str | None = None
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            yield name, conv
        elif isinstance(module, nn.Conv2d):
            conv = name


def _feeds(view: FusedView, norm: str, conv: str | None) -> bool:
    """Whether all channels of the norm come from this convolution, in its order."""
    for layer in view.layers:
        if layer.norm == norm:
            in_order = layer.source_channel.tolist() == list(range(layer.channels))
            return layer.conv == (conv,) and in_order
    return False


def _crash(modules: dict[str, Any], norm: str, conv: str | None) -> str:
    """Why the published code stops at this pair, or nothing."""
    module = modules[norm]
    if conv is None:
        return f"no convolution comes before {norm}"
    if module.weight is None or module.running_var is None:
        return f"{norm} has no {'weight' if module.weight is None else 'running variance'}"
    width = modules[conv].out_channels
    if module.num_features > width:
        return f"{norm} has {module.num_features} channels, the last convolution before it {width}"
    dead = int(torch.count_nonzero(module.running_var == 0))
    if dead:
        return f"running variance 0 in {dead} channel{'s' * (dead > 1)} of {norm}"
    return ""
