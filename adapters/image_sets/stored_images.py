"""Images as people have them: arrays in a file, CIFAR's batches, class folders, or a folder with a table of labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import RecordError
from clp_plugin.files.arrays import read_arrays
from clp_plugin.files.hashing import sha256
from clp_plugin.files.reading import read_csv, read_text
from clp_plugin.images import Pixels, PixelSource
from clp_plugin.types import Ints

from . import cifar_batches, gtsrb, image_folder, tiny_imagenet
from .image_files import DecodedFiles, open_image

ARRAY_SUFFIXES = (".npz", ".npy")
_CIFAR100 = "cifar-100-python"
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "name")
_LABEL_COLUMNS = ("label", "labels", "class", "classid", "class_id", "target", "y")


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in memory or in files, which are decoded when somebody asks for them.

    Attributes:
        root: Folder that names of files are relative to.
        files: One file an image where ``pixels`` is None, else those that hold all images.
        pixels: ``(N, C, H, W)`` uint8, if they are in memory.
    """

    root: Path
    files: tuple[Path, ...]
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.files) if self.pixels is None else len(self.pixels)

    @property
    def names(self) -> list[str]:
        """Name of each image below ``root``, without suffix; of arrays the position."""
        if self.pixels is not None:
            return [str(position) for position in range(len(self.pixels))]
        return [file.relative_to(self.root).with_suffix("").as_posix() for file in self.files]

    def sizes(self) -> set[tuple[int, int]]:
        """Every height and width that occurs."""
        if self.pixels is not None:
            return {(self.pixels.shape[2], self.pixels.shape[3])}
        found = set()
        for file in self.files:
            with open_image(file) as image:
                found.add((image.height, image.width))
        return found

    def sized(self, shape: tuple[int, int, int]) -> PixelSource:
        """The images in one shape ``(C, H, W)``; files of another size are resized, bilinearly.

        Raises:
            RecordError: If arrays have another shape.
        """
        if self.pixels is None:
            return DecodedFiles(self.files, shape)
        if self.pixels.shape[1:] != shape:
            raise RecordError(f"{self.files[0]}: expected images of {shape}, found {self.pixels.shape[1:]}")
        return self.pixels

    def digest(self, positions: Ints) -> str:
        """SHA-256 over the names and contents of the files that these images come from."""
        files = self.files if self.pixels is not None else [self.files[position] for position in positions]
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.name}\n{sha256(file)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Stored images with their true labels.

    Attributes:
        images: The images, in memory or in files.
        labels: The images' true labels, ``(N,)`` int64.
    """

    images: StoredImages
    labels: Ints

    def digest(self, positions: Ints) -> str:
        """SHA-256 over what these images and their labels are made of."""
        held = self.images.digest(positions).encode() + self.labels[positions].tobytes()
        return hashlib.sha256(held).hexdigest()


def read_labelled(path: Path, labels: Path | None = None) -> LabelledImages:
    """Find images and labels in the layout that is there.

    Args:
        path: An ``.npz`` with ``x`` and ``y``; an ``.npy`` with ``labels``; a folder that is or holds
            ``cifar-10-batches-py`` or ``cifar-100-python`` (its test images), GTSRB or Tiny ImageNet as their archives
            unpack; a folder with a CSV of labels; a folder of class folders, or one that holds ``test/`` or ``val/``
            beside ``train/``. Class folders are numbered in the order of their sorted names.
        labels: An ``.npy`` of labels, or a CSV; by default ``y.npy`` beside an ``.npy``, and the only CSV in a folder.

    Raises:
        RecordError: If nothing of this kind is there, or it is damaged.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _arrays(path, labels)
    if not path.is_dir():
        raise RecordError(
            f"{path}: expected a folder of images, an .npz or an .npy, found {image_folder.listing(path)}"
        )
    for folder in (path, path / cifar_batches.FOLDER):
        if cifar_batches.is_batches_folder(folder):
            return _cifar(folder, cifar_batches.TEST_FILES, "labels", len(cifar_batches.CLASSES))
    for folder in (path, path / _CIFAR100):
        if (folder / "test").is_file():
            return _cifar(folder, ("test",), "fine_labels", 100)
    table = labels or _only_table(path)
    if table is not None:
        return _tabled(path, table)
    tree = _known_tree(path)
    if tree is not None:
        return LabelledImages(StoredImages(path, tree.test.files), tree.test.labels)
    classes = image_folder.subfolders(path)
    if not classes:
        raise RecordError(
            f"{path}: expected class folders with images, or images and a CSV of their labels, found "
            f"{image_folder.listing(path)}"
        )
    found = image_folder.list_classes(path, classes)
    return LabelledImages(StoredImages(path, found.files), found.labels)


def read_unlabelled(path: Path) -> tuple[StoredImages, Ints | None]:
    """Images of a folder at any depth, or of an ``.npz`` or ``.npy``, and the positions that an ``.npz`` gives as ``index``.

    Raises:
        RecordError: If there is none, or a file is damaged.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        held = read_arrays(path, raises=RecordError)
        index = held.get("index")
        return StoredImages(path.parent, (path,), _pixels(path, held)), None if index is None else _whole(path, index)
    files = image_folder.images_below(path) if path.is_dir() else []
    if not files:
        raise RecordError(
            f"{path}: expected a folder of images, an .npz or an .npy, found {image_folder.listing(path)}"
        )
    return StoredImages(path, tuple(files)), None


def _arrays(path: Path, labels: Path | None) -> LabelledImages:
    held = read_arrays(path, raises=RecordError)
    pixels = _pixels(path, held)
    files = [path]
    if "y" not in held:
        if path.suffix.lower() == ".npz" and labels is None:
            raise RecordError(f"{path}: expected the arrays x (images) and y (labels), found {', '.join(held)}")
        beside = labels or path.with_name("y.npy")
        held |= {"y": read_arrays(beside, raises=RecordError)["x"]}
        files.append(beside)
    found = _whole(files[-1], held["y"])
    if len(found) != len(pixels):
        raise RecordError(f"{files[-1]}: expected a label for each of {len(pixels)} images, found {len(found)}")
    return LabelledImages(StoredImages(path.parent, tuple(files), pixels), found)


def _whole(path: Path, numbers: NDArray[Any]) -> Ints:
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise RecordError(f"{path}: expected (N,) whole numbers, found {numbers.shape} {numbers.dtype}")
    return numbers.astype(np.int64)


def _pixels(path: Path, held: dict[str, NDArray[Any]]) -> Pixels:
    if "x" not in held:
        raise RecordError(f"{path}: expected the array x (images) and y (labels), found {', '.join(held) or 'nothing'}")
    pixels = held["x"]
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not pixels.size:
        raise RecordError(f"{path}: expected x of (N, C, H, W) uint8, found {pixels.shape} {pixels.dtype}")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    return pixels.astype(np.uint8)


def _cifar(folder: Path, names: tuple[str, ...], key: str, num_classes: int) -> LabelledImages:
    pixels, labels = cifar_batches.read_batches(folder, names, labels=key, num_classes=num_classes)
    return LabelledImages(StoredImages(folder, tuple(folder / name for name in names), pixels), labels)


def _known_tree(path: Path) -> image_folder.ImageTree | None:
    if image_folder.is_image_tree(path) and not (path / "wnids.txt").is_file():
        return image_folder.list_tree(path)
    if any((folder / "wnids.txt").is_file() for folder in (path, path / tiny_imagenet.FOLDER)):
        return tiny_imagenet.list_tiny_imagenet(path)
    if any((folder / "Final_Test").is_dir() for folder in (path, path / "GTSRB", path / "gtsrb" / "GTSRB")):
        return gtsrb.list_gtsrb(path)
    return None


def _only_table(path: Path) -> Path | None:
    tables = sorted(file for file in path.iterdir() if file.suffix.lower() == ".csv" and file.is_file())
    if len(tables) > 1:
        raise RecordError(
            f"{path}: expected one CSV of labels, found {', '.join(table.name for table in tables)}; say which (--labels)"
        )
    return tables[0] if tables else None


def _tabled(path: Path, table: Path) -> LabelledImages:
    heading = read_text(table, raises=RecordError).partition("\n")[0]
    rows = read_csv(table, raises=RecordError, delimiter=max(",;\t", key=heading.count))
    columns = list(rows[0]) if rows else []
    file_column, label_column = (
        next((column for column in columns if column.strip().lower() in known), None)
        for known in (_FILE_COLUMNS, _LABEL_COLUMNS)
    )
    if file_column is None or label_column is None:
        raise RecordError(
            f"{table}: expected a column {' or '.join(_FILE_COLUMNS)} and a column {' or '.join(_LABEL_COLUMNS)}, found "
            f"{', '.join(columns) or 'nothing'}"
        )
    words = [row.get(label_column, "").strip() for row in rows]
    files = tuple(path / row.get(file_column, "").strip() for row in rows)
    outside = [word for word in files if ".." in word.parts or not word.is_relative_to(path)]
    if outside:
        raise RecordError(f"{table}: expected names of images in {path}, found {outside[0]}")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise RecordError(
            f"{table}: names {len(files)} images, of which {len(missing)} are missing; the first is {missing[0]}"
        )
    return LabelledImages(StoredImages(path, files), _numbered(words))


def _numbered(words: Sequence[str]) -> Ints:
    """Labels as numbers: as they stand, or positions in the sorted names."""
    if all(re.fullmatch(r"\d{1,9}", word) for word in words):
        return np.asarray([int(word) for word in words], dtype=np.int64)
    return np.unique(words, return_inverse=True)[1].astype(np.int64)
