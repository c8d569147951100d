"""Attention on maps, one number after the other."""

from __future__ import annotations

import math

from torch import Tensor


def slow_attention(maps: Tensor) -> list[list[float]]:
    """Image by image, position by position."""
    result = []
    for image in maps.double().tolist():
        height, width = len(image[0]), len(image[0][0])
        sums = [sum(channel[i][j] ** 2 for channel in image) for i in range(height) for j in range(width)]
        length = math.sqrt(sum(value**2 for value in sums))
        result.append([value / length for value in sums])
    return result
