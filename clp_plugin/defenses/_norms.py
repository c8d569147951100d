"""The BatchNorm layers that a defense masks, and a forward pass with other weights and biases in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from clp_plugin.channel_graph import is_norm
from clp_plugin.errors import ConfigError
from clp_plugin.types import Mask
from clp_plugin.wrappers import unwrap


def affine_norms(model: nn.Module, method: str) -> dict[str, nn.Module]:
    """BatchNorm layers with weight, bias and running statistics, by name in the bare network.

    Raises:
        ConfigError: If there is none.
    """
    found = {
        name: module
        for name, module in unwrap(model).named_modules()
        if is_norm(module) and isinstance(module.weight, nn.Parameter) and module.running_var is not None
    }
    if not found:
        raise ConfigError(
            f"{method} acts on BatchNorm layers with weights, and this network has none; use clp, ft, fp or nad"
        )
    return found


def with_norms(
    model: nn.Module, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """The bare network as a function, with these weights and biases in its BatchNorm layers; gradients reach them.

    Args:
        model: Running statistics move if it is in train mode, as always.
        weights: Layer name to ``(channels,)``.
        biases: Likewise; layers that are left out keep their own.
    """
    network = unwrap(model)
    replaced = {f"{name}.weight": weight for name, weight in weights.items()}
    replaced |= {f"{name}.bias": bias for name, bias in (biases or {}).items()}

    def run(images: Tensor) -> Tensor:
        return torch.func.functional_call(network, replaced, (images,))  # type: ignore[no-any-return]

    return run


def mask_below(values: Mapping[str, Tensor], threshold: float) -> Mask:
    """Layer name to ``(channels,)`` scores in, channels with a score of at most ``threshold`` out."""
    return Mask({name: (score.detach().cpu() <= threshold).numpy() for name, score in values.items()})
