"""Pre-activation residual networks and their squeeze-and-excitation kin.

Many BatchNorms here receive a residual sum, not a convolution: the networks on which pairing each BatchNorm with "the
last conv seen" goes wrong. Parameter names and shapes are those that BackdoorBench's checkpoints have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .blocks import add_stages, check_size, conv1x1, conv3x3, initialise, run_stages


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions; a shortcut conv starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride))

    def branch(self, activated: Tensor) -> Tensor:
        """The sum's other part, which is added to the shortcut."""
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = self.shortcut(activated) if len(self.shortcut) else x
        return self.branch(activated) + shortcut


class SEBlock(PreActBlock):
    """A pre-activation block whose channels are weighted by two 1x1 convolutions of their means (reduction 16)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        squeezed = max(outputs // 16, 1)
        self.fc1 = nn.Conv2d(outputs, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, outputs, 1)

    def branch(self, activated: Tensor) -> Tensor:
        out = super().branch(activated)
        return out * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(out, 1)))))


class PreActResNet(nn.Module):
    """No BatchNorm after the stem or before the classifier.

    Source:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.
    """

    def __init__(self, num_classes: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        blocks = check_size(width, blocks)
        self.conv1 = conv3x3(3, width)
        self.stages = len(blocks)
        self.linear = nn.Linear(add_stages(self, PreActBlock, width, blocks), num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = run_stages(self, self.conv1(x), self.stages)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


class WideResNet(PreActResNet):
    """Pre-activation blocks, then a BatchNorm and a ReLU before the pooling; no BatchNorm stands before a sum.

    Source:
        Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016: width 16 times the widening factor, three stages.
    """

    def __init__(self, num_classes: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__(num_classes, width, blocks)
        self.bn1 = nn.BatchNorm2d(self.linear.in_features)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(run_stages(self, self.conv1(x), self.stages)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


class SENet(nn.Module):
    """Pre-activation blocks with squeeze and excitation, after a stem with BatchNorm.

    Source:
        Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, num_classes: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        blocks = check_size(width, blocks)
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        self.linear = nn.Linear(add_stages(self, SEBlock, width, blocks), num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = run_stages(self, F.relu(self.bn1(self.conv1(x))), self.stages)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits
