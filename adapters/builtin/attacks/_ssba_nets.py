"""The two networks of SSBA: one hides bits in an image, the other reads them back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# BackdoorBench's side of the plane on which the secret is laid out, for images of 32x32 and of 64x64.
PLANE = 16
_DOWN = 3


class Encoder(nn.Module):
    """U-shaped: the secret, spread over a plane, goes in beside the image, and a residual for the image comes out.

    No BatchNorm: the residual of an image must not depend on which other images are poisoned with it.

    Args:
        channels: Of the images.
        bits: Length of the secret.
        width: Channels at full resolution; twice and four times as many below.
    """

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.channels, self.bits, self.width = channels, bits, width
        widths = _widths(width)
        self.plane = nn.Linear(bits, channels * PLANE * PLANE)
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(nn.Conv2d(upper, lower, 3, stride=2, padding=1) for upper, lower in pairs)
        self.up = nn.ModuleList(nn.Conv2d(lower + upper, upper, 3, padding=1) for upper, lower in reversed(pairs))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor, secrets: Tensor) -> Tensor:
        """Residuals ``(N, C, H, W)``, unbounded, for images ``(N, C, H, W)`` in [0, 1] and bits ``(N, bits)``, 0 or 1."""
        plane = F.relu(self.plane(secrets - 0.5)).view(-1, self.channels, PLANE, PLANE)
        features = F.relu(self.first(torch.cat((images - 0.5, F.interpolate(plane, size=images.shape[2:])), 1)))
        kept = []
        for layer in self.down:
            kept.append(features)
            features = F.relu(layer(features))
        for layer in self.up:
            upper = kept.pop()
            # Nearest neighbours: their gradient is the same in every run on a GPU, that of bilinear ones is not.
            features = F.relu(layer(torch.cat((F.interpolate(features, size=upper.shape[2:]), upper), 1)))
        residual: Tensor = self.last(features)
        return residual


class Decoder(nn.Module):
    """Reads the bits of an image; needed to train the encoder and for nothing else.

    Args:
        input_shape: ``(C, H, W)`` of the images.
        bits: Length of the secret.
        width: Channels after the first layer.
    """

    def __init__(self, input_shape: tuple[int, int, int], bits: int, width: int) -> None:
        super().__init__()
        channels, height, width_in_pixels = input_shape
        layers: list[nn.Module] = []
        before = channels
        for after in _widths(width)[1:]:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            height, width_in_pixels, before = -(-height // 2), -(-width_in_pixels // 2), after
        # Not pooled: where a pattern lies tells which bit it is.
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width_in_pixels, bits))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, bits)``, above 0 for a 1, of images ``(N, C, H, W)`` in [0, 1]."""
        logits: Tensor = self.layers(images - 0.5)
        return logits


def _widths(width: int) -> list[int]:
    return [width * min(2**depth, 4) for depth in range(_DOWN + 1)]
