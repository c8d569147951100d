"""ResNeXt-29 for 32x32 images, with the parameter names and shapes of the toolbox's checkpoints.

Source:
    Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017; three stages.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_STAGES, _BLOCKS, _STEM = 3, 3, 64
_EXPANSION = 2  # a block's output channels over its grouped ones


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, each with BatchNorm, added to a shortcut."""

    def __init__(self, inputs: int, grouped: int, groups: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * grouped
        self.conv1 = nn.Conv2d(inputs, grouped, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(grouped)
        self.conv2 = nn.Conv2d(grouped, grouped, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(grouped)
        self.conv3 = nn.Conv2d(grouped, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNeXt29(nn.Module):
    """ResNeXt-29 for images ``(B, 3, 32, 32)``: a 1x1 stem, then three stages of three blocks."""

    def __init__(self, num_classes: int, groups: int = 2, width: int = 64) -> None:
        """Make the network.

        Args:
            num_classes: Number of outputs.
            groups: Cardinality of the grouped convolutions.
            width: Channels of one group in the first stage; each stage doubles it.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        channels = _STEM
        for stage in range(_STAGES):
            grouped = groups * width * 2**stage
            layer = nn.Sequential()
            for block in range(_BLOCKS):
                layer.append(ResNeXtBlock(channels, grouped, groups, 2 if stage > 0 and block == 0 else 1))
                channels = _EXPANSION * grouped
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(_STAGES):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        logits: Tensor = self.linear(F.avg_pool2d(out, 8).flatten(1))
        return logits
