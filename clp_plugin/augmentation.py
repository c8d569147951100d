"""Random crops and flips of a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def augment(images: Tensor, generator: torch.Generator, *, padding: int, flip: bool) -> Tensor:
    """Shift each image at random, black at the edges, and mirror half of them.

    The draws depend on the generator and the batch's size only, not on the device.

    Args:
        images: ``(B, C, H, W)``, any dtype and device.
        generator: On the CPU; advanced.
        padding: Largest shift, in pixels; 0 for none.
        flip: Whether to mirror half of the images left to right.

    Returns:
        A tensor like ``images``.
    """
    if not padding and not flip:
        return images
    count, channels, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = shifts[1] + columns
    padded = F.pad(images, (padding,) * 4)
    device = images.device
    # One gather does crop and flip.
    return padded[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows.to(device)[:, None, :, None],
        columns.to(device)[:, None, None, :],
    ]
