"""Triggers that are known as pictures: a patch, a blended pattern, an added pattern; how each is put on images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.images import Pixels
from clp_plugin.types import Floats

Shape: TypeAlias = tuple[int, int, int]
_CHUNK = 256
# Share of the free rows and columns that lies above and left of what is placed.
PLACES: Mapping[str, tuple[float, float]] = {
    "top-left": (0, 0),
    "top-right": (0, 1),
    "bottom-left": (1, 0),
    "bottom-right": (1, 1),
    "center": (0.5, 0.5),
}


@dataclass(frozen=True, eq=False)
class Trigger:
    """Turns each image into ``image * kept + added``, rounded and clipped to 0..255.

    Attributes:
        kept: Share of the image that stays, ``(C, H, W)`` in [0, 1].
        added: The part that is added, ``(C, H, W)`` in grey levels; may be negative.

    Example:
        >>> import numpy as np
        >>> white = Trigger.patch(np.full((1, 2, 2), 255.0), shape=(3, 8, 8), at="bottom-right")
        >>> white(np.zeros((1, 3, 8, 8), dtype=np.uint8))[0, 0, 5:, 5:]
        array([[  0,   0,   0],
               [  0, 255, 255],
               [  0, 255, 255]], dtype=uint8)
    """

    kept: Floats
    added: Floats

    def __call__(self, pixels: Pixels) -> Pixels:
        """A triggered copy of images ``(N, C, H, W)`` uint8.

        Raises:
            ConfigError: If the images are of another shape.
        """
        if pixels.shape[1:] != self.kept.shape:
            raise ConfigError(f"the trigger is made for images of {self.kept.shape}, these are {pixels.shape[1:]}")
        triggered = np.empty_like(pixels)
        for start in range(0, len(pixels), _CHUNK):  # a float copy of a whole set is eight times its size
            part = pixels[start : start + _CHUNK] * self.kept + self.added
            triggered[start : start + _CHUNK] = np.clip(np.rint(part), 0, 255)
        return triggered

    @staticmethod
    def patch(pattern: Floats, *, shape: Shape, mask: Floats | None = None, at: str | None = None) -> Trigger:
        """A picture that takes the place of what is below it: ``image * (1 - mask) + pattern * mask``.

        Args:
            pattern: ``(C or 1, h, w)`` in grey levels, at most as large as the images.
            shape: ``(C, H, W)`` of the images.
            mask: How much of the pattern covers, ``(C or 1, h, w)`` in [0, 1]; all of it if None.
            at: A name of ``PLACES``, or ``"X,Y"``: column and row of the upper left corner, counted from 0. May be left
                out for a pattern as large as the images.

        Raises:
            ConfigError: If pattern and mask do not fit each other or the images.
        """
        covered = np.ones((1, *pattern.shape[1:])) if mask is None else mask
        _require_same_size(pattern, covered)
        return Trigger(
            1 - _placed(covered, shape, at),
            _placed(pattern, shape, at) * _placed(covered, shape, at),
        )

    @staticmethod
    def blend(
        pattern: Floats, weight: float, *, shape: Shape, mask: Floats | None = None, at: str | None = None
    ) -> Trigger:
        """A faint picture: ``image * (1 - weight * mask) + pattern * weight * mask``; other arguments as of :meth:`patch`.

        Args:
            pattern: ``(C or 1, h, w)`` in grey levels.
            weight: Share of the pattern, in (0, 1].
            shape: ``(C, H, W)`` of the images.
            mask: How much of the pattern is blended in at each position, in [0, 1]; all of it if None.
            at: The pattern's place, as for :meth:`patch`.

        Raises:
            ConfigError: If the weight is outside its range, or pattern and mask do not fit each other or the images.
        """
        if not 0 < weight <= 1:
            raise ConfigError(f"blend: expected a share of the pattern above 0, at most 1, found {weight:g}")
        whole = np.ones((1, *pattern.shape[1:])) if mask is None else mask
        return Trigger.patch(pattern, shape=shape, mask=weight * whole, at=at)

    @staticmethod
    def addition(pattern: Floats, *, shape: Shape, mask: Floats | None = None, at: str | None = None) -> Trigger:
        """A picture added to what is below it: ``image * (1 - mask) + pattern``; other arguments as of :meth:`patch`.

        Args:
            pattern: ``(C or 1, h, w)`` in grey levels; may be negative.
            shape: ``(C, H, W)`` of the images.
            mask: How much of the image goes; nothing of it if None.
            at: The pattern's place, as for :meth:`patch`.

        Raises:
            ConfigError: If pattern and mask do not fit each other or the images.
        """
        taken = np.zeros((1, *pattern.shape[1:])) if mask is None else mask
        _require_same_size(pattern, taken)
        return Trigger(1 - _placed(taken, shape, at), _placed(pattern, shape, at))


def _require_same_size(pattern: Floats, mask: Floats) -> None:
    if pattern.shape[1:] != mask.shape[1:]:
        raise ConfigError(
            f"the trigger has {_size(pattern.shape)} pixels and its mask {_size(mask.shape)}; expected one size"
        )


def _placed(values: Floats, shape: Shape, at: str | None) -> NDArray[np.float64]:
    """The values at their place in an image that is 0 elsewhere, ``(C, H, W)``."""
    channels, height, width = values.shape
    if channels not in (1, shape[0]):
        raise ConfigError(f"the trigger has {channels} channels, the images {shape[0]}; expected as many, or 1")
    top, left = corner((height, width), shape, at)
    placed = np.zeros(shape)
    placed[:, top : top + height, left : left + width] = values
    return placed


def corner(size: tuple[int, int], shape: Shape, at: str | None) -> tuple[int, int]:
    """Row and column of the upper left corner of a trigger.

    Args:
        size: Height and width of the trigger.
        shape: ``(C, H, W)`` of the images.
        at: Where it lies, as :meth:`Trigger.patch` takes it.

    Raises:
        ConfigError: If it does not lie within the images, or its place is not said.
    """
    free = (shape[1] - size[0], shape[2] - size[1])
    if min(free) < 0:
        raise ConfigError(f"the trigger has {size[0]}x{size[1]} pixels, more than the images' {_size(shape)}")
    if at is None:
        if any(free):
            raise ConfigError(
                f"the trigger has {size[0]}x{size[1]} pixels, the images {_size(shape)}: say where it lies, with a corner "
                "such as bottom-right, or X,Y of its upper left pixel"
            )
        return 0, 0
    if at in PLACES:
        down, right = PLACES[at]
        return int(free[0] * down), int(free[1] * right)
    found = re.fullmatch(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*", at)
    if found is None:
        raise ConfigError(unknown_name("place", at, [*PLACES, "X,Y"]))
    left, top = int(found[1]), int(found[2])
    if top > free[0] or left > free[1]:
        raise ConfigError(
            f"a trigger of {size[0]}x{size[1]} pixels at column {left} and row {top} leaves images of {_size(shape)}; "
            f"give at most {free[1]},{free[0]}"
        )
    return top, left


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
