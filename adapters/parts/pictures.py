"""Read patterns and masks of triggers: pictures, or arrays for what no picture can hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.files.arrays import read_arrays
from clp_plugin.images import PixelSource
from clp_plugin.records.parts import Triggered
from clp_plugin.records.triggers import Shape, Trigger
from clp_plugin.types import Floats, Ints

from ..image_sets.image_files import open_image
from ..image_sets.stored_images import LabelledImages, StoredImages, read_unlabelled
from .description import TriggerParts

_LEVELS = 255.0
_BILINEAR = Image.Resampling.BILINEAR


def read_trigger(parts: TriggerParts, folder: Path, shape: Shape) -> Trigger:
    """The trigger that a picture makes.

    Args:
        parts: The parts of a trigger, of any kind but ``"triggered"``.
        folder: The record's folder.
        shape: ``(C, H, W)`` of the images.

    Raises:
        ConfigError: If pattern, mask and images do not fit each other.
        RecordError: If a file cannot be read.
    """
    # A pattern that is blended in all over takes the images' size, as everywhere in the field; others keep theirs.
    size = (shape[2], shape[1]) if parts.kind == "blend" and parts.at is None else None
    pattern, transparency = _read_pattern(parts.picture.below(folder), shape, size)
    mask = transparency if parts.mask is None else _read_mask(parts.mask.below(folder), shape, size)
    if parts.kind == "blend":
        return Trigger.blend(pattern, parts.weight or 0.0, shape=shape, mask=mask, at=parts.at)
    make: Callable[..., Trigger] = Trigger.addition if parts.kind == "addition" else Trigger.patch
    return make(pattern, shape=shape, mask=mask, at=parts.at)


def pair(images: LabelledImages, path: Path, shape: Shape) -> tuple[Triggered, StoredImages]:
    """Triggered images with the clean ones that they were made from: of the same name, or at the same place of an array.

    Args:
        images: The clean images.
        path: A folder, an ``.npz`` with ``x`` (and ``index``, the positions of the clean images), or an ``.npy``.
        shape: Shape of the images, ``(C, H, W)``.

    Returns:
        The pairs, and where the triggered images lie.

    Raises:
        RecordError: If an image has no partner, or two.
    """
    stored, index = read_unlabelled(path)
    if index is None and stored.pixels is None:
        index = _by_name(images.images, stored)
    elif index is None:
        index = np.arange(len(stored))
        if len(stored) != len(images.labels):
            raise RecordError(
                f"{path}: expected {len(images.labels)} images, one for each clean one, found {len(stored)}; an .npz may say "
                "by an array `index` which clean images its own were made from"
            )
    if len(index) != len(stored) or not (index.min() >= 0 and index.max() < len(images.labels)):
        raise RecordError(
            f"{path}: expected index to give one of {len(images.labels)} clean images for each triggered one"
        )
    pixels: PixelSource = stored.sized(shape)
    return Triggered(pixels, index), stored


def _by_name(clean: StoredImages, triggered: StoredImages) -> Ints:
    """Position of the clean image of each triggered one: by the path below the folder, else by the bare name."""
    for short in (False, True):
        names = [_bare(name) if short else name for name in clean.names]
        positions = {name: position for position, name in enumerate(names)}
        wanted = [_bare(name) if short else name for name in triggered.names]
        if len(positions) == len(names) and len(set(wanted)) == len(wanted) and set(wanted) <= set(positions):
            return np.asarray([positions[name] for name in wanted], dtype=np.int64)
    lonely = sorted(set(triggered.names) - set(clean.names))
    raise RecordError(
        f"{triggered.root}: {len(lonely)} of {len(triggered)} triggered images have no clean image of the same name in "
        f"{clean.root}; the first is {lonely[0]}"
    )


def _bare(name: str) -> str:
    return name.rpartition("/")[2]


def _read_pattern(path: Path, shape: Shape, size: tuple[int, int] | None) -> tuple[Floats, Floats | None]:
    """A pattern ``(C or 1, h, w)`` in grey levels and, of a picture that is transparent somewhere, its mask."""
    if path.suffix.lower() == ".npy":
        array = _load_array(path, shape)
        if array.dtype.kind == "f":
            if np.abs(array).max() > 1:
                raise ConfigError(
                    f"{path}: expected grey levels as whole numbers, or numbers of at most 1 where 1 is white, found "
                    f"{array.dtype} up to {np.abs(array).max():g}"
                )
            array = array * _LEVELS
        return array.astype(np.float64), None
    with open_image(path) as opened:
        transparent = "transparency" in opened.info or opened.mode in ("RGBA", "LA", "PA")
        alpha = _grey_levels(opened.convert("RGBA").getchannel("A"), size) if transparent else None
        pattern = _grey_levels(opened.convert("L" if shape[0] == 1 else "RGB"), size)
    return pattern.astype(np.float64), None if alpha is None else alpha / _LEVELS


def _read_mask(path: Path, shape: Shape, size: tuple[int, int] | None) -> Floats:
    """How much is covered, in [0, 1]: of a picture in parts of 255, or 0 and 1."""
    if path.suffix.lower() == ".npy":
        mask = _load_array(path, shape)
    else:
        with open_image(path) as opened:
            mask = _grey_levels(
                opened.convert("L" if shape[0] == 1 or opened.mode in ("1", "L", "LA") else "RGB"), size
            )
    values = mask.astype(np.float64)
    if mask.dtype.kind in "iu" and values.max(initial=0) > 1:
        values /= _LEVELS
    if values.min(initial=0) < 0 or values.max(initial=0) > 1:
        raise ConfigError(f"{path}: expected a mask from 0 to 1, or 0 to 255, found {mask.min()} to {mask.max()}")
    return values


def _load_array(path: Path, shape: Shape) -> NDArray[Any]:
    """``(C or 1, h, w)`` of an array with channels first, last, or none."""
    held = read_arrays(path, raises=RecordError)
    if list(held) != ["x"]:
        raise ConfigError(f"{path}: expected one array, found {', '.join(held) or 'none'}")
    array = held["x"]
    if array.ndim not in (2, 3, 4) or not array.size:
        raise ConfigError(f"{path}: expected numbers of shape (C, H, W), (H, W, C) or (H, W)")
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, shape[0]):
        return array
    return _channels_first(array)


def _grey_levels(image: Image.Image, size: tuple[int, int] | None) -> NDArray[Any]:
    return _channels_first(np.asarray(image if size in (None, image.size) else image.resize(size, _BILINEAR)))


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
