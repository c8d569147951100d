"""SIG: a faint wave over the whole image, on images of the target class only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, RecordError

from .base import Attack, Pixels


@dataclass(frozen=True, eq=False)
class SIG(Attack):
    """Adds ``delta * sin(2 pi j frequency / W)`` to column j of each image, clips and rounds; labels stay.

    Attributes:
        delta: Height of the wave, in pixel levels of 0 to 255, in (0, 255].
        frequency: Periods over the width of the image, positive.

    Source:
        Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019.
        Columns are counted from 0. The paper lets the wave be stronger at test time than in training; here both are
        equal, so that ASR is that of the very trigger trained on. The defaults, 40 and 6, are those of the toolboxes.
    """

    keeps_labels: ClassVar[bool] = True

    delta: float = 40.0
    frequency: float = 6.0

    @classmethod
    def create(
        cls, input_shape: tuple[int, int, int], *, seed: int, delta: float = 40.0, frequency: float = 6.0
    ) -> SIG:
        """Choose the wave.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            seed: Any number, which is not used: nothing is random about the wave.
            delta: Height of the wave, in pixel levels of 0 to 255.
            frequency: Periods over the width; below W / 2, where the wave would vanish.

        Raises:
            ConfigError: If the height or the frequency is outside its range.
        """
        del seed
        width = input_shape[2]
        if not 0 < delta <= 255:
            raise ConfigError(f"sig: expected delta in (0, 255] pixel levels, found {delta}; 40 is usual")
        if not 0 < frequency < width / 2:
            raise ConfigError(
                f"sig: expected a frequency above 0 and below {width / 2:g} periods on images {width} pixels wide, "
                f"found {frequency}; give 6, or less for narrower images"
            )
        return cls(float(delta), float(frequency))

    def poison(self, pixels: Pixels) -> Pixels:
        width = pixels.shape[3]
        wave = self.delta * np.sin(2 * np.pi * self.frequency * np.arange(width) / width)
        # Pixels are whole numbers, so rounding the wave rounds the sum, and no float copy of a data set is needed.
        shifted = pixels.astype(np.int16) + np.rint(wave).astype(np.int16)
        poisoned: Pixels = np.clip(shifted, 0, 255).astype(np.uint8)
        return poisoned

    def to_json(self) -> dict[str, Any]:
        return {"delta": self.delta, "frequency": self.frequency}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SIG:
        del arrays
        delta, frequency = data.get("delta"), data.get("frequency")
        if not isinstance(delta, (int, float)) or not 0 < delta <= 255:
            raise RecordError(f"sig trigger: expected delta in (0, 255], found {delta!r}")
        if not isinstance(frequency, (int, float)) or not 0 < frequency < float("inf"):
            raise RecordError(f"sig trigger: expected a positive frequency, found {frequency!r}")
        return cls(float(delta), float(frequency))
