"""Images that are read when they are wanted: PNG and PPM files, or whatever a function loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clp_plugin.errors import RecordError
from clp_plugin.files.reading import open_regular
from clp_plugin.images import ArrayImages, PickedImages
from clp_plugin.types import Ints

if TYPE_CHECKING:
    import torch

KEEP_BYTES = 1 << 30  # decoded images are kept up to this size, larger sets are decoded again each time
# What data sets are made of. Pillow knows more, and gives EPS to Ghostscript whatever the file is called.
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # from here on Pillow itself warns of decompression bombs
_CHUNK = 256
_MODES = {1: "L", 3: "RGB"}


class DecodedFiles:
    """The pixels of image files, decoded once each, in the shape that the toolbox's test transform gives them."""

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int]) -> None:
        """Remember what to read.

        Args:
            files: The image files, in the order of their positions.
            shape: ``(C, H, W)`` with C 1 or 3; files of another size are resized, bilinearly, as the toolbox does.
        """
        self.files, self.shape = tuple(files), shape
        keep = len(self.files) * int(np.prod(shape)) <= KEEP_BYTES
        self._kept = np.empty((len(self.files) if keep else 0, *shape), dtype=np.uint8)
        self._known = np.zeros(len(self._kept), dtype=bool)

    def __getitem__(self, positions: Ints) -> NDArray[np.uint8]:
        """Pixels ``(B, C, H, W)`` of the files at these positions.

        Raises:
            RecordError: If a file is missing or damaged.
        """
        if not len(self._kept):
            return self._decode(positions)
        new = np.unique(positions[~self._known[positions]])
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            self._kept[chunk] = self._decode(chunk)
            self._known[chunk] = True
        return self._kept[positions]

    def _decode(self, positions: Ints) -> NDArray[np.uint8]:
        with ThreadPoolExecutor() as pool:  # PIL decodes without holding Python's lock
            return np.stack(list(pool.map(lambda position: decode(self.files[position], self.shape), positions)))


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """An image that is decoded when it is used, within the block; its size is known before.

    Raises:
        RecordError: Naming the file, if it is missing, no ordinary file, of another format, too large or damaged.
    """
    try:
        with (
            open_regular(file, raises=RecordError, expected="an image") as opened,
            Image.open(opened, formats=FORMATS) as image,
        ):
            if math.prod(image.size) > MOST_PIXELS:
                raise RecordError(f"{file} has {image.width} x {image.height} pixels, expected at most {MOST_PIXELS}")
            yield image
    except RecordError:
        raise
    except UnidentifiedImageError as error:
        raise RecordError(f"{file} cannot be read as an image: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # PIL raises half a dozen types on damaged files
        raise RecordError(f"{file} cannot be read as an image ({error}); copy it again") from error


def decode(file: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode one image as ``(C, H, W)`` uint8.

    Raises:
        RecordError: If the file is missing, damaged or no image.
    """
    channels, height, width = shape
    with open_image(file) as opened:
        image = opened.convert(_MODES[channels])
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


class DeferredImages:
    """An :class:`~clp_plugin.types.ImageSet` that is loaded when something of it is first asked for."""

    def __init__(self, load: Callable[[], ArrayImages | PickedImages]) -> None:
        self._load = load

    @cached_property
    def _images(self) -> ArrayImages | PickedImages:
        return self._load()

    @property
    def labels(self) -> Ints:
        """True labels, ``(N,)`` int64; the set is loaded for them."""
        return self._images.labels

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Ints) -> ArrayImages | PickedImages:
        """The images at these positions, in this order; the set is loaded for them."""
        return self._images.take(indices)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Normalized images in order, each batch ``(B, C, H, W)`` float32 on the CPU."""
        return self._images.batches(batch_size)
