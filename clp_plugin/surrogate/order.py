"""Which channels carry a surrogate trigger, and what pruning each would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.networks.hooks import hooked
from clp_plugin.surrogate.pixels import PixelNetwork, margin
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import Floats, Mask

Channel = tuple[str, int]
PREFIXES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 24)


def gain_over_cost(
    network: PixelNetwork, images: Tensor, surrogates: Sequence[Surrogate], layers: Sequence[str]
) -> dict[str, Floats]:
    """What pruning each channel takes from the triggers, over what it takes from the images' own classes, to first order.

    With a_k the channel's output: gain = mean over images of the sum over positions of a_k * d(z_target - z_own) / da_k
    with the trigger; cost = root mean square over images of the sum of a_k * d(z_own - logsumexp of the others) / da_k
    without it. The result is the mean gain of the surrogates over (cost + the median cost of all layers' channels).

    Args:
        network: The network behind its normalization.
        images: ``(B, C, H, W)``, pixels in [0, 1].
        surrogates: The triggers, at least one.
        layers: Names of the modules whose channels may be silenced.

    Returns:
        Layer name to ``(channels,)``; larger is more worth pruning.
    """
    own = network.classes(images)

    def towards(target: int) -> Callable[[Tensor], Tensor]:
        return lambda logits: (logits[:, target] - logits.gather(1, own[:, None])[:, 0]).sum()

    gains = [contributions(network, one.attach(images), layers, towards(one.target)) for one in surrogates]
    costs = contributions(network, images, layers, lambda logits: margin(logits, own).sum())
    spread = {name: np.sqrt((values**2).mean(0)) for name, values in costs.items()}
    typical = float(np.median(np.concatenate(list(spread.values())))) + 1e-12
    return {name: np.mean([gain[name].mean(0) for gain in gains], axis=0) / (spread[name] + typical) for name in spread}


def contributions(
    network: PixelNetwork, images: Tensor, layers: Sequence[str], value: Callable[[Tensor], Tensor]
) -> dict[str, Floats]:
    """Sum over positions of a channel's output times the gradient of ``value(logits)``: layer to ``(B, channels)``."""
    heard: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hear(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            heard.setdefault(name, []).append(output)
            return output.clone()  # an activation behind it may work in place

        return hear

    modules = dict(network.network.named_modules())
    with hooked(modules[name].register_forward_hook(listen(name)) for name in layers):
        logits = network.logits(images.clone().requires_grad_())
    outputs = [output for name in heard for output in heard[name]]
    gradients = iter(torch.autograd.grad(value(logits), outputs, allow_unused=True))
    found: dict[str, Floats] = {}
    for name, calls in heard.items():
        parts = [(a, next(gradients)) for a in calls]
        products = [(a * g).flatten(2).sum(2) if a.ndim > 2 else a * g for a, g in parts if g is not None]
        total = sum(products, torch.zeros(calls[0].shape[:2], device=images.device))
        found[name] = total.detach().double().cpu().numpy()
    return found


def ranked(values: dict[str, Floats]) -> list[Channel]:
    """The channels of positive value, the largest first; of equal ones the earlier."""
    channels = [(name, k) for name, vector in values.items() for k in range(len(vector)) if vector[k] > 0]
    return sorted(channels, key=lambda channel: -values[channel[0]][channel[1]])


def prefix_masks(order: Sequence[Channel], widths: dict[str, int]) -> list[Mask]:
    """Masks of the first 0, 1, 2, ... 24 channels of an order."""
    masks = []
    for length in sorted({min(length, len(order)) for length in PREFIXES}):
        pruned = {name: np.zeros(width, dtype=bool) for name, width in widths.items()}
        for name, k in order[:length]:
            pruned[name][k] = True
        masks.append(Mask(pruned))
    return masks
