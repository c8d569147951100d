"""Remove pruned channels physically, where the network's couplings allow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clp_plugin.errors import ConfigError
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.masking.apply import masked
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.outputs import logits_of
from clp_plugin.types import Mask

_TOLERANCE = 1e-4  # of float32 logits, relative; removing a channel changes the order of summation


def compact(view: FusedView, mask: Mask, input_shape: Sequence[int]) -> nn.Module:
    """A physically smaller copy of the masked model with the same logits.

    A channel is removed when everything coupled to it (the other summands of a residual sum, say) is silent too, and
    when what follows maps 0 to 0; the others stay, silent. Each removal is checked on random inputs.

    Args:
        view: The linear layers of the unpruned model, found by data flow.
        mask: The channels to prune.
        input_shape: Shape of one input, ``(C, H, W)``.

    Returns:
        The smaller model in eval mode; its names are the same, its shapes are not.

    Raises:
        ConfigError: If torch-pruning is not installed.
        MaskError: If the mask does not fit the model.
    """
    smaller = masked(view.model, mask)
    image = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))
    chosen = mask.indices()
    for layer in view.layers:
        if layer.name in chosen and len(layer.conv) == 1 and (layer.source >= 0).all():
            smaller = _without_silent_channels(smaller, layer, image)
    return smaller


def _without_silent_channels(model: nn.Module, layer: LinearLayer, image: torch.Tensor) -> nn.Module:
    """The model without those silent channels of one layer that nothing else needs."""
    smaller = copy_of(model)
    modules: dict[str, Any] = dict(smaller.named_modules())
    conv = modules[layer.conv[0]]
    pruning = _torch_pruning()
    graph = pruning.DependencyGraph().build_dependency(smaller, example_inputs=image, verbose=False)

    def group(channels: list[int]) -> Any:
        return graph.get_pruning_group(conv, pruning.prune_conv_out_channels, idxs=channels)

    silent = torch.nonzero(_is_silent(modules[layer.name])).flatten().tolist()
    removable = [k for k in silent if _all_silent(group([k]))]
    if not removable or len(removable) == conv.out_channels:
        return model
    group(removable).prune()
    with torch.no_grad():
        expected, found = logits_of(model.eval()(image)), logits_of(smaller.eval()(image))
    same = torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max()))
    return smaller if same else model


def _is_silent(module: Any) -> torch.Tensor:
    """``(K,)`` bool: output channels that are exactly 0 whatever comes in."""
    silent: torch.Tensor = module.weight.flatten(1).eq(0).all(1) if module.weight.ndim > 1 else module.weight.eq(0)
    return silent if module.bias is None else silent & module.bias.eq(0)


def _all_silent(group: Any) -> bool:
    """Whether every BatchNorm that loses a channel with this group has only zeros there."""
    norms = ((d.target.module, list(index)) for d, index in group if hasattr(d.target.module, "running_var"))
    return all(norm.affine and bool(_is_silent(norm)[index].all()) for norm, index in norms)


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError("compact needs torch-pruning: pip install 'clp-plugin[compact]'") from error
    return torch_pruning
