"""The data sets of the built-in bench: ``digits``, which needs no file, and those that are read from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, RecordError, unknown_name
from clp_plugin.types import Ints

from ..image_sets import cifar_batches, gtsrb, image_folder, tiny_imagenet
from . import digits
from .randomness import Stream, numpy_generator

DATASETS = ("cifar10", "digits", "folder", "gtsrb", "tiny_imagenet")
ALIASES: Mapping[str, str] = {"tiny": "tiny_imagenet"}  # BackdoorBench's name
DIGITS_TRAIN, DIGITS_TEST = 10_000, 2_000
# Of the 50,000 lossless training images (Krizhevsky 2009), on the [0, 1] scale.
_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_Sizes: TypeAlias = tuple[int | None, int | None]  # wanted training and test images
_Part: TypeAlias = tuple[NDArray[np.uint8], Ints]


@dataclass(frozen=True)
class Dataset:
    """Training and test images in memory.

    Attributes:
        name: Name of the data set, one of ``DATASETS``.
        class_names: One name a class; a label is a position in it.
        train_pixels: Training images, ``(N, 3, H, W)`` uint8.
        train_labels: True labels of the training images, ``(N,)`` int64.
        test_pixels: Test images, ``(M, 3, H, W)`` uint8.
        test_labels: True labels of the test images, ``(M,)`` int64.
        mean: Mean of the normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale, positive.
    """

    name: str
    class_names: tuple[str, ...]
    train_pixels: NDArray[np.uint8]
    train_labels: Ints
    test_pixels: NDArray[np.uint8]
    test_labels: Ints
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, each with a name."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.train_pixels.shape[1:]
        return channels, height, width


def load_dataset(
    name: str,
    *,
    path: Path | str | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> Dataset:
    """Load a data set, or a seeded random part of it.

    Args:
        name: One of ``DATASETS``, or a key of ``ALIASES``.
        path: The data set's files. For ``cifar10``: a folder that is or holds ``cifar-10-batches-py``, or an
            ImageFolder tree. For ``folder``: an ImageFolder tree. For ``tiny_imagenet`` and ``gtsrb``: a folder that is
            or holds ``tiny-imagenet-200`` or ``GTSRB``. None for ``digits``, which has none.
        n_train: Number of training images; None for all (``digits``: 10,000).
        n_test: Number of test images; None for all (``digits``: 2,000).
        seed: Seed of the choice of images; for ``digits`` of their composition.
        image_size: Pixels a side, not for ``cifar10`` and ``digits``. None for the usual: 64 for ``tiny_imagenet``, 32
            for ``gtsrb``, for ``folder`` the shorter side of its first image. Images of another size are resized and
            cropped at the centre; where the field squeezes those that are not square, as of ``gtsrb``, this differs.

    Raises:
        ConfigError: If an option does not fit the data set.
        RecordError: If the files are missing, damaged, or laid out in another way.
    """
    name = ALIASES.get(name, name)
    if name not in DATASETS:
        raise ConfigError(unknown_name("dataset", name, DATASETS))
    for option, value in (("n_train", n_train), ("n_test", n_test), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: expected a positive number of images or pixels, found {value}")
    if image_size is not None and name in ("cifar10", "digits"):
        raise ConfigError(
            f"image_size={image_size}: dataset {name!r} has images of 32x32; beside 'gtsrb' and 'tiny_imagenet' "
            "only 'folder' takes a size"
        )
    if name == "digits":
        if path is not None:
            raise ConfigError(f"dataset 'digits' is built in and reads no files; found path {path}")
        return _digits(n_train or DIGITS_TRAIN, n_test or DIGITS_TEST, seed)
    root = _existing(name, path)
    sizes = (n_train, n_test)
    if name == "cifar10":
        return _cifar10(root, sizes, seed)
    if name == "folder":
        return _folder(root, sizes, seed, image_size)
    if name == "gtsrb":
        return _gtsrb(root, sizes, seed, image_size)
    return _tiny_imagenet(root, sizes, seed, image_size)


def _existing(name: str, path: Path | str | None) -> Path:
    if path is None:
        raise ConfigError(f"dataset {name!r} is read from files: give the path of its folder")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise RecordError(
            f"{root}: expected the folder of dataset {name!r}, found {'a file' if root.exists() else 'nothing'}"
        )
    return root


def _digits(n_train: int, n_test: int, seed: int) -> Dataset:
    train_pixels, train_labels = digits.compose(n_train, "train", seed=seed)
    test_pixels, test_labels = digits.compose(n_test, "test", seed=seed)
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits", names, train_pixels, train_labels, test_pixels, test_labels, (0.5,) * 3, (0.25,) * 3)


def _cifar10(root: Path, sizes: _Sizes, seed: int) -> Dataset:
    for folder in (root, root / cifar_batches.FOLDER):
        if cifar_batches.is_batches_folder(folder):
            return _from_batches(folder, sizes, seed)
    if not image_folder.is_image_tree(root):
        raise RecordError(
            f"{root}: expected CIFAR-10 as torchvision keeps it ({cifar_batches.FOLDER}/data_batch_1 to test_batch) "
            f"or as folders of images (train/<class>/, test/<class>/), found {image_folder.listing(root)}"
        )
    tree = image_folder.list_tree(root)
    if len(tree.class_names) != len(cifar_batches.CLASSES):
        raise RecordError(
            f"{root / 'train'}: expected the 10 classes of CIFAR-10, found {len(tree.class_names)}; "
            "read other images as dataset 'folder'"
        )
    train, test = _from_tree(tree, sizes, seed, 32)
    return Dataset("cifar10", tree.class_names, *train, *test, _CIFAR10_MEAN, _CIFAR10_STD)


def _from_batches(folder: Path, sizes: _Sizes, seed: int) -> Dataset:
    def part(split: int, files: tuple[str, ...]) -> _Part:
        pixels, labels = cifar_batches.read_batches(folder, files)
        chosen = _choice(len(labels), sizes[split], seed, split)
        return pixels[chosen], labels[chosen]

    train, test = part(0, cifar_batches.TRAIN_FILES), part(1, cifar_batches.TEST_FILES)
    return Dataset("cifar10", cifar_batches.CLASSES, *train, *test, _CIFAR10_MEAN, _CIFAR10_STD)


def _folder(root: Path, sizes: _Sizes, seed: int, image_size: int | None) -> Dataset:
    tree = image_folder.list_tree(root)
    train, test = _from_tree(tree, sizes, seed, image_size or image_folder.native_size(tree.train.files[0]))
    mean, std = channel_statistics(train[0])
    return Dataset("folder", tree.class_names, *train, *test, mean, std)


def _gtsrb(root: Path, sizes: _Sizes, seed: int, image_size: int | None) -> Dataset:
    tree = gtsrb.list_gtsrb(root)
    train, test = _from_tree(tree, sizes, seed, image_size or gtsrb.SIDE)
    return Dataset("gtsrb", tree.class_names, *train, *test, gtsrb.MEAN, gtsrb.STD)


def _tiny_imagenet(root: Path, sizes: _Sizes, seed: int, image_size: int | None) -> Dataset:
    tree = tiny_imagenet.list_tiny_imagenet(root)
    train, test = _from_tree(tree, sizes, seed, image_size or tiny_imagenet.SIDE)
    return Dataset("tiny_imagenet", tree.class_names, *train, *test, tiny_imagenet.MEAN, tiny_imagenet.STD)


def _from_tree(tree: image_folder.ImageTree, sizes: _Sizes, seed: int, image_size: int) -> tuple[_Part, _Part]:
    def part(split: int, listed: image_folder.FileList) -> _Part:
        # Choose first: only what is used gets decoded.
        chosen = _choice(len(listed.files), sizes[split], seed, split)
        return image_folder.decode([listed.files[i] for i in chosen], image_size), listed.labels[chosen]

    return part(0, tree.train), part(1, tree.test)


def _choice(available: int, wanted: int | None, seed: int, split: int) -> Ints:
    """Sorted positions of a seeded random part, ``(wanted,)``; all of them for None."""
    if wanted is None:
        return np.arange(available)
    if wanted > available:
        raise ConfigError(
            f"{'n_test' if split else 'n_train'}={wanted}: the data set has only {available} images there"
        )
    return np.sort(numpy_generator(seed, Stream.SUBSET, split).permutation(available)[:wanted])


def channel_statistics(pixels: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std a channel on the [0, 1] scale, rounded to 4 digits, of ``(N, C, H, W)`` uint8; std at least 0.01."""
    levels = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(pixels.shape[1]):
        # A histogram is exact and needs no float copy of the images.
        share = np.bincount(pixels[:, channel].ravel(), minlength=256) / pixels[:, channel].size
        mean = float(share @ levels)
        means.append(round(mean, 4))
        stds.append(round(max(float(np.sqrt(share @ (levels - mean) ** 2)), 0.01), 4))
    return tuple(means), tuple(stds)
