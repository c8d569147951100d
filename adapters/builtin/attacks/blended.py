"""Blended: a faint pattern over the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, RecordError

from ..randomness import Stream, numpy_generator
from .base import Attack, Pixels, pattern_from_json, pattern_to_json

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Blended(Attack):
    """Each image becomes (1 - alpha) * image + alpha * pattern.

    Attributes:
        pattern: The trigger, ``(C, H, W)`` uint8.
        alpha: Share of the pattern in the mix, in (0, 1].

    Source:
        Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017 (arXiv:1712.05526),
        with uniform noise for the pattern, which the paper calls random.
    """

    pattern: Pixels
    alpha: float = 0.2

    @classmethod
    def create(cls, input_shape: tuple[int, int, int], *, seed: int, alpha: float = 0.2) -> Blended:
        """Draw the pattern.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            seed: Seed of the pattern.
            alpha: Share of the pattern in the mix, in (0, 1].

        Raises:
            ConfigError: If alpha is outside its range.
        """
        if not 0 < alpha <= 1:
            raise ConfigError(f"blended: expected alpha in (0, 1], found {alpha}")
        return cls(numpy_generator(seed, Stream.TRIGGER).integers(0, 256, size=input_shape, dtype=np.uint8), alpha)

    def poison(self, pixels: Pixels) -> Pixels:
        if pixels.shape[1:] != self.pattern.shape:
            raise ConfigError(f"blended: the pattern is {self.pattern.shape}, the images are {pixels.shape[1:]}")
        poisoned = np.empty_like(pixels)
        share = np.float32(self.alpha) * self.pattern.astype(np.float32)
        # In parts: a float copy of a whole data set is four times its size.
        for start in range(0, len(pixels), _CHUNK):
            part = pixels[start : start + _CHUNK].astype(np.float32)
            poisoned[start : start + _CHUNK] = np.rint(part * np.float32(1 - self.alpha) + share)
        return poisoned

    def to_json(self) -> dict[str, Any]:
        return {"pattern": pattern_to_json(self.pattern), "alpha": self.alpha}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Blended:
        del arrays
        alpha = data.get("alpha")
        if not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
            raise RecordError(f"blended trigger: expected alpha in (0, 1], found {alpha!r}")
        pattern = pattern_from_json(data.get("pattern"))
        if pattern.ndim != 3:
            raise RecordError(f"blended trigger: expected a pattern of (C, H, W), found {pattern.shape}")
        return cls(pattern, float(alpha))
