"""In-memory images for records, uint8 arrays that become normalized float batches, and random crops and flips of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import RecordError
from clp_plugin.types import Ints

if TYPE_CHECKING:
    import torch

Pixels: TypeAlias = NDArray[np.uint8]


class PixelSource(Protocol):
    """Pixels by position: an array, or files that are decoded when they are asked for."""

    def __getitem__(self, positions: Ints, /) -> Pixels:
        """Pixels ``(B, C, H, W)`` at positions ``(B,)``."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images held as bytes.

    Attributes:
        pixels: Values of 0 to 255, ``(N, C, H, W)`` uint8.
        labels: True labels, ``(N,)`` int64.
        mean: Mean of the normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale.
    """

    pixels: Pixels
    labels: Ints
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise RecordError(f"images: expected (N, C, H, W) uint8, found {self.pixels.shape} {self.pixels.dtype}")
        if len(self.labels) != len(self.pixels):
            raise RecordError(f"{len(self.pixels)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Ints) -> ArrayImages:
        """The images at these positions, in this order, as an array of their own."""
        return ArrayImages(self.pixels[indices], self.labels[indices], self.mean, self.std)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Normalized images in order, each batch ``(B, C, H, W)`` float32 on the CPU."""
        for start in range(0, len(self), batch_size):
            yield normalize(self.pixels[start : start + batch_size], self.mean, self.std)


@dataclass(frozen=True)
class PickedImages:
    """An :class:`~clp_plugin.types.ImageSet` of some of the images of a source.

    Attributes:
        pixels: Shared by all parts taken of one set, so that no file is decoded twice.
        labels: True labels, ``(N,)`` int64.
        mean: Mean of the normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale.
        positions: Positions in the source of these images, ``(N,)`` int64.
    """

    pixels: PixelSource
    labels: Ints
    mean: tuple[float, ...]
    std: tuple[float, ...]
    positions: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, indices: Ints) -> PickedImages:
        """The images at these positions, in this order, of the same source."""
        return PickedImages(self.pixels, self.labels[indices], self.mean, self.std, self.positions[indices])

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Normalized images in order, read from the source batch by batch, ``(B, C, H, W)`` float32 on the CPU."""
        for start in range(0, len(self), batch_size):
            yield normalize(self.pixels[self.positions[start : start + batch_size]], self.mean, self.std)


def normalize(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """``(B, C, H, W)`` uint8 to float32: (pixels / 255 - mean) / std, channel by channel."""
    import torch

    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32).div_(255.0)
    return images.sub_(torch.tensor(mean).view(1, -1, 1, 1)).div_(torch.tensor(std).view(1, -1, 1, 1))


def augment(images: torch.Tensor, generator: torch.Generator, *, padding: int, flip: bool) -> torch.Tensor:
    """Shift each image at random, black at the edges, and mirror half of them.

    The draws depend on the generator and the batch's size only, not on the device.

    Args:
        images: ``(B, C, H, W)``, any dtype and device.
        generator: Source of the shifts and flips, on the CPU; it is advanced.
        padding: Largest shift, in pixels; 0 for none.
        flip: Whether to mirror half of the images left to right.

    Returns:
        A tensor like ``images``.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812

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
