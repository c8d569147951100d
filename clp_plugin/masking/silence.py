"""Whether pruned channels are silent: what modules and the network really put out after a mask was applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from clp_plugin.errors import MaskError
from clp_plugin.fusion.layers import fuse
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.hooks import eval_mode, hooked
from clp_plugin.networks.kinds import CONV_TYPES, is_plain_batchnorm, smallest_input
from clp_plugin.types import Bools, Mask

_PLAIN_CONVOLUTIONS = frozenset(CONV_TYPES)
_SAMPLES = 2


def still_heard(modules: Mapping[str, nn.Module], name: str, channels: Bools, *, keep_bias: bool) -> str:
    """Why the pruned channels of a layer are not silent, or "".

    Plain convolutions and BatchNorms are silent by what they compute. Others are run on random numbers, together with the
    convolution that they are a part of (blocks for quantization-aware training hold their BatchNorm).

    Args:
        modules: All modules of the network, after the mask was applied.
        name: Name of the layer.
        channels: Pruned channels, ``(K,)``.
        keep_bias: Whether a constant counts as silence.
    """
    module = modules[name]
    parts = name.split(".")
    blocks = (modules[".".join(parts[:end])] for end in range(1, len(parts)))
    block = next((block for block in blocks if isinstance(block, CONV_TYPES)), None)
    plain = is_plain_batchnorm(module) or (type(module) in _PLAIN_CONVOLUTIONS and not module._forward_hooks)
    if plain and block is None:
        return ""
    used = copy_of(block or module).eval()
    stored = next(iter((*used.parameters(), *used.buffers())))
    with torch.no_grad():
        output: Tensor = used(_random_images(smallest_input(used)).to(stored.device, stored.dtype))
    return _why_not_silent(output, channels, keep_bias=keep_bias)


def require_silence(model: nn.Module, mask: Mask, input_shape: Sequence[int], *, keep_bias: bool) -> None:
    """Refuse a masked network in which a pruned channel still contributes.

    Args:
        model: The bare network, after the mask was applied.
        mask: The mask that was applied.
        input_shape: Shape of one input, ``(C, H, W)``.
        keep_bias: Whether a constant counts as silence.

    Raises:
        MaskError: If a pruned layer puts out the logits, is made heard by a norm behind it, or puts out something on random
            inputs; names the first.
    """
    view = fuse(model, input_shape)
    pruned = {name: channels for name, channels in mask.pruned.items() if channels.any()}
    reasons = dict(view.unscored)
    reasons |= {layer.name: "it puts out the logits" for layer in view.layers if layer.kind == "head"}
    reasons |= {layer.name: layer.unprunable for layer in view.layers if layer.unprunable}

    def listen(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hear(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if reason := _why_not_silent(output, pruned[name], keep_bias=keep_bias):
                reasons.setdefault(name, reason)

        return hear

    stored = next(model.parameters())
    modules = dict(model.named_modules())
    with torch.no_grad(), eval_mode(model), hooked(modules[n].register_forward_hook(listen(n)) for n in pruned):
        model(_random_images(input_shape).to(stored.device, stored.dtype))
    for name in pruned:
        if reason := reasons.get(name):
            raise MaskError(f"layer {name!r} cannot be silenced: {reason}")


def _why_not_silent(output: Tensor, channels: Bools, *, keep_bias: bool) -> str:
    """Say what pruned channels put out that they should not, or ""."""
    maps = output.transpose(0, 1).flatten(1)[torch.from_numpy(channels).to(output.device)]
    expected = maps[:, :1] if keep_bias else torch.zeros_like(maps)
    if bool((maps == expected).all()):
        return ""
    largest = float(maps.abs().max())
    return (
        f"a pruned channel puts out {largest:.3g} on random inputs, as the module is no plain convolution or BatchNorm"
    )


def _random_images(shape: Sequence[int]) -> Tensor:
    return torch.randn((_SAMPLES, *shape), generator=torch.Generator().manual_seed(0))
