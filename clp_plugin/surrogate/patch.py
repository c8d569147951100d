"""The search of a small patch put in the place of what an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clp_plugin.surrogate.pixels import PixelNetwork, margin, shortfall
from clp_plugin.surrogate.trigger import Surrogate

SIZES = (3, 4, 5)
WINDOW = 5  # side of the windows that the first search looks at
_WINDOWS = 2  # a class, of each of the two ways to choose them
_SEARCHED_ON = 10  # classes
_STEP, _MOMENTUM = 0.15, 0.8
_BATCH = 512

Place = tuple[int, int]


def search_patch(
    network: PixelNetwork,
    fit: Tensor,
    held_out: Tensor,
    classes: Sequence[int],
    *,
    patterns: Mapping[int, Tensor],
    sizes: Sequence[int] = SIZES,
    success: float = 0.8,
) -> tuple[Surrogate, tuple[int, Place] | None]:
    """The smallest patch that sends images to the easiest class, and the next easiest class with its window.

    The first search puts a 5x5 patch at four windows a class: two where replacing pixels gains most to first order, and two
    where the class's added pattern has most energy. The ten classes that are reached best are searched on, and the one of
    the lowest cross-entropy on held-out images is the target.

    Args:
        network: The network behind its normalization.
        fit: Images that patches are fitted on, ``(B, C, H, W)``, pixels in [0, 1].
        held_out: Images that success is measured on.
        classes: The classes to search.
        patterns: The added pattern of each class, ``(C, H, W)``, as :func:`.pattern.search_pattern` finds them.
        sizes: Sides to try for the target, smallest first.
        success: The success at which a size is large enough; without it the most successful patch is returned.
    """
    side = min(WINDOW, *fit.shape[2:])
    starts = [
        (c, place)
        for c in classes
        for place in dict.fromkeys(
            [
                *windows(first_order_gain(network, fit[:6], c), side, count=_WINDOWS),
                *windows(patterns[c].square().sum(0), side, count=_WINDOWS),
            ]
        )
    ]
    patches = fit_patches(network, fit, starts, side, count=3, steps=8)
    reached = _reached(network, held_out, starts, patches)
    losses = {starts[i][0]: reached[i] for i in sorted(range(len(starts)), key=reached.__getitem__, reverse=True)}
    best = easiest(starts, reached, count=_SEARCHED_ON)
    patches = fit_patches(network, fit, best, side)
    again = _reached(network, held_out, best, patches)
    losses |= {target: loss for (target, _), loss in zip(best, again, strict=True)}
    (target, place), *others = [best[i] for i in sorted(range(len(best)), key=again.__getitem__)]
    found = refine_patch(
        network, fit, held_out, target, places=[place], side=side, sizes=sizes, losses=losses, success=success
    )
    return found, others[0] if others else None


def refine_patch(
    network: PixelNetwork,
    fit: Tensor,
    held_out: Tensor,
    target: int,
    *,
    places: Sequence[Place],
    side: int,
    sizes: Sequence[int],
    losses: dict[int, float],
    reach: int = 1,
    success: float = 0.8,
) -> Surrogate:
    """The patch of the first of these sizes that succeeds for this class; the most successful one where none does.

    Args:
        network: The network behind its normalization.
        fit: Images that patches are fitted on.
        held_out: Images that success is measured on.
        target: The class.
        places: Upper left corners of windows to search in.
        side: Side of those windows.
        sizes: Sides of the patch, in the order of trial.
        losses: The per-class table of the search that chose the target.
        reach: Number of pixels that the patch may leave its window by.
        success: The success at which a size is large enough.
    """
    own = network.classes(held_out)
    found: list[Surrogate] = []
    for size in sizes:
        around = sorted({near for place in places for near in _around(place, side, size, reach, fit.shape[2:])})
        starts = [(target, place) for place in around]
        patches = fit_patches(network, fit, starts, size)
        reached = _reached(network, held_out, starts, patches)
        best = min(range(len(starts)), key=reached.__getitem__)
        one = Surrogate("patch", target, patches[best].cpu(), around[best], 0.0, losses)
        rate = one.success_on(network, held_out, own)
        found.append(Surrogate("patch", target, one.values, one.place, rate, losses))
        if rate >= success:
            break
    return found[-1] if found[-1].success >= success else max(found, key=lambda one: one.success)


def first_order_gain(network: PixelNetwork, images: Tensor, target: int) -> Tensor:
    """What replacing each pixel can gain for a class to first order, ``(H, W)``, mean over images.

    A pixel of value x whose gradient of the margin is g can gain max(-g x, g (1 - x)).
    """
    pixels = images.clone().requires_grad_()
    wanted = torch.full((len(images),), target, device=images.device)
    (gradient,) = torch.autograd.grad(margin(network.logits(pixels), wanted).sum(), pixels)
    return torch.maximum(-gradient * images, gradient * (1 - images)).sum(1).mean(0)


def windows(values: Tensor, side: int, *, count: int) -> list[Place]:
    """Upper left corners of the square windows with the largest sums, which overlap by no more than half.

    Args:
        values: One number a pixel, ``(H, W)``.
        side: Side of the windows.
        count: Largest number of windows.
    """
    sums = F.avg_pool2d(values[None, None], side, stride=1)[0, 0].cpu()
    found: list[Place] = []
    while len(found) < count and bool(torch.isfinite(sums).any()):
        row, column = divmod(int(sums.argmax()), sums.shape[1])
        found.append((row, column))
        half = side // 2
        sums[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1] = float("-inf")
    return found


def fit_patches(
    network: PixelNetwork,
    images: Tensor,
    starts: Sequence[tuple[int, Place]],
    size: int,
    *,
    count: int = 6,
    steps: int = 16,
) -> Tensor:
    """One patch for each class and place, ``(starts, C, size, size)``, by sign steps with momentum from grey.

    Every step sees other images, so that a patch is found that works on all of them and not on a few.

    Args:
        network: The network behind its normalization.
        images: Images that each patch is fitted on, ``(B, C, H, W)``.
        starts: Class and upper left corner of each patch.
        size: Side of the patches.
        count: Number of images of one step.
        steps: Number of steps; their size falls from 0.15 to a fifth of it.
    """
    at_once = max(1, _BATCH // count)
    batches = [images[(torch.arange(count) + step * count) % len(images)] for step in range(steps)]
    parts = [_ascend(network, batches, starts[i : i + at_once], size) for i in range(0, len(starts), at_once)]
    return torch.cat(parts)


def easiest(starts: Sequence[tuple[int, Place]], reached: Sequence[float], *, count: int) -> list[tuple[int, Place]]:
    """The start of lowest loss of each class, and of these the ``count`` lowest, lowest first.

    A class is as easy as its best place: most windows of a backdoor's target tell nothing.
    """
    best: dict[int, tuple[int, Place]] = {}
    for i in sorted(range(len(starts)), key=reached.__getitem__):
        best.setdefault(starts[i][0], starts[i])
    return list(best.values())[:count]


def stamped(images: Tensor, patches: Tensor, places: Sequence[Place]) -> Tensor:
    """Every image with every patch, ``(patches * B, C, H, W)``, patch by patch; the gradient reaches the patches."""
    size = patches.shape[-1]
    corner = torch.tensor(places, device=images.device)
    offsets = torch.arange(size, device=images.device)
    rows, columns = corner[:, :1] + offsets, corner[:, 1:] + offsets
    index = torch.arange(len(patches), device=images.device)[:, None, None]
    shown = images[None].repeat(len(patches), 1, 1, 1, 1).permute(0, 3, 4, 1, 2)  # patch, row, column, image, channel
    values = patches.permute(0, 2, 3, 1)[:, :, :, None].expand(-1, -1, -1, len(images), -1)
    shown = shown.index_put((index, rows[:, :, None], columns[:, None, :]), values)
    return shown.permute(0, 3, 4, 1, 2).flatten(0, 1)


def _ascend(network: PixelNetwork, batches: Sequence[Tensor], starts: Sequence[tuple[int, Place]], size: int) -> Tensor:
    first = batches[0]
    labels = torch.tensor([target for target, _ in starts], device=first.device).repeat_interleave(len(first))
    places = [place for _, place in starts]
    patches = torch.full((len(starts), first.shape[1], size, size), 0.5, device=first.device)
    velocity = torch.zeros_like(patches)
    for step, images in enumerate(batches):
        patches.requires_grad_()
        loss = shortfall(network.logits(stamped(images, patches, places)), labels).sum()
        (gradient,) = torch.autograd.grad(loss, patches)
        with torch.no_grad():
            scale = gradient.abs().flatten(1).mean(1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
            velocity = _MOMENTUM * velocity + gradient / scale
            patches = (patches - _STEP * (1 - 0.8 * step / len(batches)) * velocity.sign()).clamp(0, 1)
    return patches.detach()


def _reached(
    network: PixelNetwork, images: Tensor, starts: Sequence[tuple[int, Place]], patches: Tensor
) -> list[float]:
    """Mean cross-entropy of each patch's class on the images."""
    return [
        network.cross_entropy(stamped(images, patches[i : i + 1], [place]), target)
        for i, (target, place) in enumerate(starts)
    ]


def _around(place: Place, side: int, size: int, reach: int, image: Sequence[int]) -> list[Place]:
    ranges = [
        range(max(0, start - reach), min(length - size, start + side - size + reach) + 1)
        for start, length in zip(place, image, strict=True)
    ]
    return [(row, column) for row in ranges[0] for column in ranges[1]]
