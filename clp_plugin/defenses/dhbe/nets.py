"""DHBE's two generators, of images and of patches, and what is done with their output."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_LARGEST_START = 8
_SLOPE = 0.2


def start_of(height: int, width: int) -> tuple[int, tuple[int, int]]:
    """How often a first map is doubled, and its size.

    Returns:
        The smallest number k of doublings for which a first map of at most 8 pixels a side is large enough, and that
        map's height and width, ``size / 2**k`` rounded up. For a longer side of 5 pixels or more the first map's is 5
        to 8. Where a side is no multiple of ``2**k`` the last map is larger than the image.
    """
    doublings = 0
    while _rounded_up(max(height, width), doublings) > _LARGEST_START:
        doublings += 1
    return doublings, (_rounded_up(height, doublings), _rounded_up(width, doublings))


def _rounded_up(side: int, doublings: int) -> int:
    return -(-side >> doublings)


class ImageGenerator(nn.Module):
    """Noise ``(B, latent)`` to images ``(B, C, H, W)`` in the space of normalized images.

    A linear map to ``2 * width`` small maps, doubled in size (nearest neighbour) and convolved until they are as large as
    an image; BatchNorm after each, LeakyReLU of slope 0.2 after each convolution. A last convolution, tanh, and a
    BatchNorm without parameters: in train mode each colour of a batch has mean 0 and variance 1.

    Args:
        input_shape: ``(C, H, W)`` of an image, any size; where doubling cannot reach it, the last maps are resized to it
            bilinearly before the last convolution.
        latent: Length of the noise.
        width: Maps at full size; twice as many further down. The published code's is 64.

    Source:
        The public code of DHBE (AsiaCCS 2023), for sides that are 5 to 8 times a power of 2. The resize is ours.
    """

    def __init__(self, input_shape: tuple[int, int, int], latent: int, width: int) -> None:
        super().__init__()
        channels, *size = input_shape
        doublings, (height, breadth) = start_of(*size)
        wide = 2 * width
        layers: list[nn.Module] = [
            nn.Linear(latent, wide * height * breadth),
            nn.Unflatten(1, (wide, height, breadth)),
            nn.BatchNorm2d(wide),
        ]
        before = wide
        for left in reversed(range(doublings)):
            after = wide if left else width
            convolution = nn.Conv2d(before, after, 3, padding=1)
            layers += [nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE)]
            before = after
        if (height << doublings, breadth << doublings) != tuple(size):
            layers.append(nn.Upsample(tuple(size), mode="bilinear", align_corners=False))
        layers.append(nn.Conv2d(before, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Tensor) -> Tensor:
        return cast(Tensor, self.norm(torch.tanh(self.layers(noise).float())))


class PatchGenerator(nn.Module):
    """Noise ``(B, latent)`` to patches ``(B, channels, side, side)`` in [-1, 1], on the [0, 1] scale of pixels.

    A linear map, BatchNorm, one convolution, a BatchNorm without parameters, tanh.

    Args:
        channels: Channels of an image.
        side: Side of a patch, in pixels.
        latent: Length of the noise.
        width: Maps before the convolution. The published code's is 64.

    Source:
        DHBE (AsiaCCS 2023), in the form of its public code, which has a single convolution.
    """

    def __init__(self, channels: int, side: int, latent: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, width * side * side),
            nn.Unflatten(1, (width, side, side)),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.layers(noise).float()))


def add_patches(images: Tensor, patches: Tensor, top: int, left: int, std: Tensor) -> Tensor:
    """Add a patch to each image at one place that they share; nothing is clipped.

    Args:
        images: The images, ``(B, C, H, W)``, normalized.
        patches: One patch an image, ``(B, C, side, side)``, on the [0, 1] scale of pixels.
        top: Row of the patches' first row; the patches must fit in.
        left: Column of the patches' first column; the patches must fit in.
        std: Standard deviation of the normalization, ``(C,)`` on the [0, 1] scale.

    Returns:
        A new tensor like ``images``; gradients reach images and patches.

    Source:
        DHBE (AsiaCCS 2023) adds to unnormalized images; dividing by ``std`` says the same of normalized ones.
    """
    height, width = images.shape[2:]
    side = patches.shape[-1]
    scaled = patches / std[:, None, None]
    return images + F.pad(scaled, (left, width - left - side, top, height - top - side))


def total_variation(images: Tensor) -> Tensor:
    """How much neighbouring pixels of a whole batch differ: a scalar, 0 or more.

    The sum, over the neighbours to the right, below, and on both diagonals, of the Euclidean norm of all differences in
    the batch together. It grows with the square root of the batch's size.

    Args:
        images: ``(B, C, H, W)``, both sides of at least 2 pixels.

    Source:
        The second of the two image priors of DHBE's public code (AsiaCCS 2023), the one with a weight above 0.
    """
    differences = (
        images[..., :, 1:] - images[..., :, :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()
