"""The search of an added pattern of small L2 norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clp_plugin.surrogate.pixels import PixelNetwork, shortfall
from clp_plugin.surrogate.trigger import Surrogate

FIRST_NORMS = (0.375, 0.75, 1.5)
FINAL_NORMS = (0.25, 0.375, 0.55, 0.825, 1.25, 1.875, 2.75)
_IMAGES, _STEPS, _MOMENTUM = 5, 20, 0.8
_AT_ONCE = 64  # patterns of one batch


def search_pattern(
    network: PixelNetwork,
    fit: Tensor,
    held_out: Tensor,
    classes: Sequence[int],
    *,
    first_success: float = 0.6,
    success: float = 0.8,
) -> tuple[Surrogate, dict[int, Tensor]]:
    """The added pattern of the smallest norm that sends images to the easiest class, and the first pattern of each class.

    Args:
        network: The network behind its normalization.
        fit: Images that patterns are fitted on, ``(B, C, H, W)``, pixels in [0, 1].
        held_out: Images that success is measured on.
        classes: The classes to search.
        first_success: The success at which the norm of the first search is large enough.
        success: The success at which the norm of the final search is large enough; without it the largest is returned.

    Source:
        Ours, after Neural Cleanse (Wang et al., S&P 2019), which optimises a mask; projected descent here.
    """
    own = network.classes(held_out)
    found: list[Surrogate] = []
    for norm in FIRST_NORMS:
        patterns = fit_patterns(network, fit, classes, norm)
        found = [_surrogate(network, p, c, held_out, own, {}) for p, c in zip(patterns, classes, strict=True)]
        if max(one.success for one in found) >= first_success:
            break
    losses = {one.target: network.cross_entropy(one.attach(held_out[own != one.target]), one.target) for one in found}
    target = min(losses, key=losses.__getitem__)
    best = refine_pattern(network, fit, held_out, target, losses=losses, success=success)
    return best, {one.target: one.values for one in found}


def refine_pattern(
    network: PixelNetwork,
    fit: Tensor,
    held_out: Tensor,
    target: int,
    *,
    losses: dict[int, float],
    norms: Sequence[float] = FINAL_NORMS,
    success: float = 0.8,
) -> Surrogate:
    """The pattern of the first of these norms that succeeds for this class; the last where none does."""
    own = network.classes(held_out)
    best = None
    for norm in norms:
        (pattern,) = fit_patterns(network, fit, [target], norm)
        best = _surrogate(network, pattern, target, held_out, own, losses)
        if best.success >= success:
            return best
    if best is None:
        raise ValueError("no norm was given")
    return best


def fit_patterns(network: PixelNetwork, images: Tensor, classes: Sequence[int], norm: float) -> Tensor:
    """One pattern a class, ``(classes, C, H, W)``, within an L2 ball, by normalised projected descent with momentum."""
    parts = [
        _descend(network, images, torch.tensor(classes[i : i + _AT_ONCE]), norm)
        for i in range(0, len(classes), _AT_ONCE)
    ]
    return torch.cat(parts)


def _descend(network: PixelNetwork, images: Tensor, wanted: Tensor, norm: float) -> Tensor:
    count = len(wanted)
    labels = wanted.to(images.device).repeat_interleave(_IMAGES)
    pattern = torch.zeros(count, *images.shape[1:], device=images.device)
    velocity = torch.zeros_like(pattern)
    for step in range(_STEPS):
        chosen = images[(torch.arange(_IMAGES) + step * _IMAGES) % len(images)]
        pattern.requires_grad_()
        shown = (chosen[None] + pattern[:, None]).clamp(0, 1).flatten(0, 1)
        (gradient,) = torch.autograd.grad(shortfall(network.logits(shown), labels).sum(), pattern)
        with torch.no_grad():
            velocity = _MOMENTUM * velocity + _unit(gradient)
            pattern = pattern - 0.25 * norm * (1 - 0.8 * step / _STEPS) * _unit(velocity)
            pattern = pattern * (norm / _norms(pattern).clamp(min=norm))
    return pattern.detach()


def _norms(values: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return lengths.reshape(-1, 1, 1, 1)


def _unit(values: Tensor) -> Tensor:
    return values / _norms(values).clamp(min=1e-12)


def _surrogate(
    network: PixelNetwork, pattern: Tensor, target: int, held_out: Tensor, own: Tensor, losses: dict[int, float]
) -> Surrogate:
    found = Surrogate("pattern", target, pattern.cpu(), None, 0.0, losses)
    return Surrogate("pattern", target, found.values, None, found.success_on(network, held_out, own), losses)
