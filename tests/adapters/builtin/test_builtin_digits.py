"""The built-in images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from clp_plugin.adapters.builtin import digits


def test_images_are_colour_bytes_of_ten_classes() -> None:
    pixels, labels = digits.compose(400, "train", seed=0)
    assert pixels.shape == (400, 3, 32, 32)
    assert pixels.dtype == np.uint8
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(10))


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    first, again = digits.compose(50, "train", seed=3), digits.compose(50, "train", seed=3)
    other = digits.compose(50, "train", seed=4)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_train_and_test_share_no_digit() -> None:
    strokes = {split: digits._digits(split)[0] for split in ("train", "test")}
    assert len(strokes["train"]) + len(strokes["test"]) == len(load_digits().target)
    train = {image.tobytes() for image in strokes["train"]}
    # Equal drawings by chance would show up here too; there are none in scikit-learn's set.
    assert not any(image.tobytes() in train for image in strokes["test"])


@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 298)), ("test", slice(298, 427))])
def test_backgrounds_come_from_the_rows_of_their_split(
    split: digits.Split, rows: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows as brightness: the patches then tell which rows they were cut from.
    height, width = load_sample_images().images[0].shape[:2]
    ramp = np.broadcast_to((np.arange(height) // 2)[:, None, None], (height, width, 3)).astype(np.uint8)
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: type("Photos", (), {"images": [ramp, ramp]}))
    digits._photographs.cache_clear()
    try:
        patches = digits._backgrounds(300, split, np.random.default_rng(0))
    finally:
        digits._photographs.cache_clear()
    assert patches.min() >= rows.start // 2
    assert patches.max() <= (rows.stop - 1) // 2
    assert patches.max() - patches.min() > 0.8 * (rows.stop - rows.start) / 2


def test_stretching_keeps_a_constant_and_a_ramp() -> None:
    matrix = digits._bilinear(8, 32)
    assert np.allclose(matrix.sum(axis=1), 1)
    ramp = matrix @ np.arange(8.0)
    assert np.allclose(np.diff(ramp)[2:-2], 0.25)


def test_a_linear_reader_of_the_true_strokes_can_tell_the_digits() -> None:
    # Labels belong to the digits painted: the mean drawing of its class fits an image best more often than not.
    pixels, labels = digits.compose(600, "train", seed=1)
    contrast = np.abs(pixels.mean(axis=1) - pixels.mean(axis=(1, 2, 3))[:, None, None])
    strokes, names = digits._digits("train")
    means = np.stack([strokes[names == c].mean(axis=0) for c in range(10)])
    means -= means.mean(axis=(1, 2), keepdims=True)
    guesses = np.einsum("nhw,chw->nc", contrast, means).argmax(axis=1)
    assert (guesses == labels).mean() > 0.5
