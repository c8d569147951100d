"""The two networks of the input-aware attack: one makes a pattern for an image, the other where to put it."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

# Heights and widths are halved this many times.
LEVELS = 3
MULTIPLE = 2**LEVELS
_TINY = 1e-7


class UShaped(nn.Module):
    """Halves an image three times, doubles it three times: ``(B, C, H, W)`` to ``(B, out_channels, H, W)`` in [0, 1].

    Each halving follows two convolutions, each doubling precedes two, with BatchNorm and ReLU after all of them but the
    last, which has no ReLU. Like the published network it has no skip connections.

    Args:
        channels: Channels of the image.
        out_channels: 3 for a pattern on colour images, 1 for a mask.
        width: Channels at full size; two and four times as many further down. The paper's is 32.
    """

    def __init__(self, channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for after in (width, 2 * width, 4 * width):
            layers += [*_conv_block(before, after), *_conv_block(after, after), nn.MaxPool2d(2)]
            before = after
        layers += _conv_block(before, before)
        for after in (2 * width, width, out_channels):
            doubled = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            layers += [doubled, *_conv_block(before, before), *_conv_block(before, after)]
            before = after
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        # tanh(y) / 2 + 0.5, written so that it keeps its precision near 0.
        return torch.sigmoid(2 * cast(Tensor, self.layers(images)))


def _conv_block(before: int, after: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after, momentum=0.05), nn.ReLU()]


def scaled(images: Tensor) -> Tensor:
    """Images in 0 to 255 as the networks take them.

    Standardised with the mean 0.5 and the standard deviation 0.25 of whatever data set, near those of natural images
    (0.247 on CIFAR-10), so that the paper's weights of the losses keep their meaning.
    """
    return (images.to(torch.float32) / 255 - 0.5) / 0.25


def sharp_mask(network: nn.Module, images: Tensor) -> Tensor:
    """Masks ``(B, 1, H, W)`` in [0, 1], most values near 0 or 1, for images in 0 to 255.

    They are tanh(20 x - 10) / 2 + 0.5 of the network's output x, written so that it keeps its precision near 0.
    """
    return torch.sigmoid(40 * cast(Tensor, network(scaled(images))) - 20)


def diversity(images: Tensor, others: Tensor, made: Tensor, made_of_others: Tensor) -> Tensor:
    """How much less the outputs for two images differ than the images: to be made small.

    Args:
        images: A batch of images, ``(B, C, H, W)``.
        others: Another image for each, same shape and unit.
        made: Outputs for ``images``, ``(B, ...)``.
        made_of_others: Outputs for ``others``.

    Returns:
        A scalar: the mean over the pairs of RMS(image - other) / (RMS(output - output of other) + 1e-7).
    """
    return (_rms(images - others) / (_rms(made - made_of_others) + _TINY)).mean()


def _rms(differences: Tensor) -> Tensor:
    flat = differences.flatten(1)
    # The norm's derivative at 0 is 0; that of the square root of a mean is not a number.
    return cast(Tensor, torch.linalg.vector_norm(flat, dim=1) / math.sqrt(flat.shape[1]))


def blend(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """Images in 0 to 255 with patterns in [0, 1] where the masks are 1."""
    return images + (255 * patterns - images) * masks
