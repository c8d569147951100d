"""VGG with BatchNorm and a single linear classifier, for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .blocks import check_size, conv3x3, initialise

# Convolutions a stage, of the five stages.
VGG11, VGG16, VGG19 = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
_STAGE_WIDTH = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Stage i has (1, 2, 4, 8, 8)[i] times ``width`` channels and ends in a pooling that halves the size.

    Source:
        Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, with BatchNorm after each convolution.
    """

    def __init__(self, num_classes: int, width: int, convolutions: Sequence[int]) -> None:
        super().__init__()
        check_size(width, convolutions)
        layers: list[nn.Module] = []
        channels = 3
        for factor, count in zip(_STAGE_WIDTH, convolutions, strict=True):
            for _ in range(count):
                layers += [conv3x3(channels, factor * width), nn.BatchNorm2d(factor * width), nn.ReLU(inplace=True)]
                channels = factor * width
            # Rounded up, so that images below 32x32 are not pooled away.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(out)
        return logits
