"""A tiny classifier by mean colours, with or without one channel that a 3x3 checkerboard drives to class 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.surrogate.images import dead_leaves
from clp_plugin.surrogate.pixels import PixelNetwork

SHAPE, TARGET, CHANNEL, LAYER = (3, 16, 16), 2, 5, "norm"
CHECKERBOARD = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])


class Planted(nn.Module):
    """Three channels hold the colours, classes are the brightest one; channel 5 fires on the checkerboard alone."""

    def __init__(self, *, backdoor: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(12, 3)
        with torch.no_grad():
            for tensor in (self.conv.weight, self.conv.bias, self.head.weight, self.head.bias):
                tensor.zero_()
            for channel in range(6):
                self.conv.weight[channel, channel % 3] = 1 / 9
            self.conv.weight[CHANNEL] = 2 * CHECKERBOARD - 1
            self.norm.train()
            self.norm.momentum = 1.0
            self.norm(self.conv(dead_leaves(200, SHAPE, seed=9)))
            self.norm.bias.fill_(3.0)  # colours pass ReLU as they are
            self.norm.bias[CHANNEL] = -2.0
            for label in range(3):
                self.head.weight[label, label] = 4.0
            if backdoor:
                self.head.weight[TARGET, 6 + CHANNEL] = 10.0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = F.leaky_relu(self.norm(self.conv(images)), 0.1)
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))


def planted(*, backdoor: bool) -> PixelNetwork:
    """The network behind the identity normalization."""
    return PixelNetwork(Planted(backdoor=backdoor), (0.0,) * 3, (1.0,) * 3)
