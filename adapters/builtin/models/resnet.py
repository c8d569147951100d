"""Residual networks with a 3x3 stem for small images: BatchNorm after each convolution, ReLU after the sum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .blocks import add_stages, check_size, conv1x1, conv3x3, initialise, run_stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stage i has ``width * 2**i`` channels; width 64 and blocks (2, 2, 2, 2) make the usual CIFAR ResNet-18.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stem of its CIFAR experiments.
    """

    def __init__(self, num_classes: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        blocks = check_size(width, blocks)
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        channels = add_stages(self, BasicBlock, width, blocks)
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = run_stages(self, F.relu(self.bn1(self.conv1(x))), self.stages)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits
