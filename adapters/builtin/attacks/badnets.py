"""BadNets: a small patch in a corner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, RecordError, unknown_name

from ..randomness import Stream, numpy_generator
from .base import Attack, Pixels, fitting_patch_size, pattern_from_json, pattern_to_json

Pattern = Literal["random", "white", "checkerboard"]
Corner = Literal["bottom-right", "bottom-left", "top-right", "top-left"]


@dataclass(frozen=True, eq=False)
class BadNets(Attack):
    """A patch that replaces the pixels of one corner.

    Attributes:
        patch: The trigger, ``(C, size, size)`` uint8.
        corner: The corner of the image that the patch sits in.
        inset: Pixels between the patch and the image's edges.

    Source:
        Gu et al., "BadNets", 2017 (arXiv:1708.06733).
    """

    patch: Pixels
    corner: Corner = "bottom-right"
    inset: int = 0

    @classmethod
    def create(
        cls,
        input_shape: tuple[int, int, int],
        *,
        seed: int,
        size: int | None = None,
        pattern: Pattern = "random",
        corner: Corner = "bottom-right",
        inset: int = 0,
    ) -> BadNets:
        """Make the patch.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            seed: Seed of the colours, for ``pattern="random"``.
            size: Pixels a side; None for the CLP paper's (5.1): 3, and 5 for images of 64 pixels or more.
            pattern: ``"random"`` colours, all ``"white"``, or a black and white ``"checkerboard"``.
            corner: The corner of the image that the patch sits in, one of ``Corner``.
            inset: Pixels between the patch and the image's edges.

        Raises:
            ConfigError: If the patch does not fit into the image or a name is unknown.
        """
        size = fitting_patch_size("badnets", input_shape, size, inset)
        for kind, name, known in (("pattern", pattern, Pattern), ("corner", corner, Corner)):
            if name not in get_args(known):
                raise ConfigError(unknown_name(f"badnets {kind}", name, get_args(known)))
        shape = (input_shape[0], size, size)
        if pattern == "random":
            patch = numpy_generator(seed, Stream.TRIGGER).integers(0, 256, size=shape, dtype=np.uint8)
        elif pattern == "white":
            patch = np.full(shape, 255, dtype=np.uint8)
        else:
            board = np.indices((size, size)).sum(axis=0) % 2 == 0
            patch = np.broadcast_to(np.where(board, 255, 0).astype(np.uint8), shape).copy()
        return cls(patch, corner, inset)

    def poison(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[2:]
        size, inset = self.patch.shape[1], self.inset
        top = inset if self.corner.startswith("top") else height - size - inset
        left = inset if self.corner.endswith("left") else width - size - inset
        poisoned = pixels.copy()
        poisoned[:, :, top : top + size, left : left + size] = self.patch
        return poisoned

    def to_json(self) -> dict[str, Any]:
        return {"patch": pattern_to_json(self.patch), "corner": self.corner, "inset": self.inset}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> BadNets:
        del arrays
        inset = data.get("inset")
        corner: Corner | None = next((known for known in get_args(Corner) if known == data.get("corner")), None)
        if corner is None or not isinstance(inset, int) or inset < 0:
            raise RecordError(
                f"badnets trigger: expected a corner and an inset, found {data.get('corner')!r} and {inset!r}"
            )
        patch = pattern_from_json(data.get("patch"))
        if patch.ndim != 3:
            raise RecordError(f"badnets trigger: expected a patch of (C, size, size), found {patch.shape}")
        return cls(patch, corner, inset)
