"""The built-in images: scikit-learn's handwritten digits over patches of its two sample photographs.

Ten classes of 32x32 colour images that need no download. A uniform background would leave a trigger alone in an empty
corner, which no natural data set does; photographs fill the corners.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clp_plugin.types import Ints

Split = Literal["train", "test"]
SIDE = 32
TRAIN_DIGITS = 1300
# Share of each photograph's rows, from the top, that belongs to the training split.
TRAIN_ROWS = 0.7
_SPLIT_SEED = 20220
_STREAM = {"train": 0, "test": 1}


def compose(n: int, split: Split, *, seed: int) -> tuple[NDArray[np.uint8], Ints]:
    """Compose ``n`` images: a patch of a photograph under a digit in a random colour that stands out from it.

    Training images are made of 1300 digits and the upper 70 % of the photographs, test images of the other 497 digits
    and the rows below: no digit and no photograph pixel is shared, whatever the seeds.

    Args:
        n: Number of images; any, digits and patches are drawn with replacement.
        split: The split to compose: ``"train"`` or ``"test"``.
        seed: Seed of the composition, non-negative.

    Returns:
        Pixels ``(n, 3, 32, 32)`` uint8 and labels ``(n,)`` int64 in 0 to 9.
    """
    rng = np.random.default_rng([seed, _STREAM[split]])
    strokes, labels = _digits(split)
    images = _backgrounds(n, split, rng)
    chosen = rng.integers(len(labels), size=n)
    dark = images.mean(axis=(1, 2, 3)) < 128
    low, high = np.where(dark, 150, 0)[:, None], np.where(dark, 256, 106)[:, None]
    colours = rng.integers(low, high, size=(n, 3)).astype(np.float32)[:, :, None, None]
    images += (colours - images) * strokes[chosen][:, None]
    return np.rint(images).astype(np.uint8), labels[chosen]


@lru_cache(maxsize=2)
def _digits(split: Split) -> tuple[NDArray[np.float32], Ints]:
    """Stroke opacities at full size, ``(D, 32, 32)`` in [0, 1], and their labels, ``(D,)``."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    chosen = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    small = images[chosen].reshape(-1, 8, 8).astype(np.float32) / 16
    stretch = _bilinear(8, SIDE)
    return np.asarray(stretch @ small @ stretch.T), labels[chosen].astype(np.int64)


def _bilinear(source: int, target: int) -> NDArray[np.float32]:
    """Matrix ``(target, source)`` that stretches a line of pixels; rows sum to 1.

    Written out rather than left to an image library, whose rounding changes between versions and with it every record.
    """
    centres = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.minimum(np.floor(centres).astype(np.int64), source - 2)
    share = (centres - left).astype(np.float32)
    matrix = np.zeros((target, source), dtype=np.float32)
    matrix[np.arange(target), left] = 1 - share
    matrix[np.arange(target), left + 1] = share
    return matrix


@lru_cache(maxsize=2)
def _photographs(split: Split) -> tuple[NDArray[np.uint8], ...]:
    """The split's rows of each photograph, ``(rows, columns, 3)``."""
    from sklearn.datasets import load_sample_images

    parts = []
    for photo in load_sample_images().images:
        cut = int(TRAIN_ROWS * photo.shape[0])
        parts.append(photo[:cut] if split == "train" else photo[cut:])
    return tuple(parts)


def _backgrounds(n: int, split: Split, rng: np.random.Generator) -> NDArray[np.float32]:
    """Patches of the photographs, half of them mirrored, ``(n, 3, 32, 32)`` in [0, 255]."""
    photos = _photographs(split)
    which = rng.integers(len(photos), size=n)
    patches = np.empty((n, 3, SIDE, SIDE), dtype=np.float32)
    for index, photo in enumerate(photos):
        members = np.flatnonzero(which == index)
        windows = sliding_window_view(photo, (SIDE, SIDE), axis=(0, 1))  # (rows, columns, 3, 32, 32), no copy
        tops = rng.integers(windows.shape[0], size=len(members))
        lefts = rng.integers(windows.shape[1], size=len(members))
        patches[members] = windows[tops, lefts]
    mirrored = rng.random(n) < 0.5
    patches[mirrored] = patches[mirrored, :, :, ::-1]
    return patches
