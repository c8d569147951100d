"""Images in class folders: ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` (or ``val/``), at any depth below."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clp_plugin.errors import RecordError
from clp_plugin.types import Ints

from .image_files import open_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
TEST_FOLDERS = ("test", "val")
_CHUNK = 256


@dataclass(frozen=True)
class FileList:
    """The image files of one split, not yet decoded.

    Attributes:
        files: The image files, in the order of the classes, then by name.
        labels: ``(N,)`` int64, position of each file's class in the sorted class names.
    """

    files: tuple[Path, ...]
    labels: Ints


@dataclass(frozen=True)
class ImageTree:
    """Both splits of an ImageFolder tree and the class names, sorted."""

    train: FileList
    test: FileList
    class_names: tuple[str, ...]


def is_image_tree(path: Path) -> bool:
    """Whether ``path`` has ``train/`` and one of ``test/`` and ``val/``, judged by names."""
    return (path / "train").is_dir() and any((path / name).is_dir() for name in TEST_FOLDERS)


def list_tree(path: Path) -> ImageTree:
    """List the images of an ImageFolder tree.

    Raises:
        RecordError: If a split or a class is missing or empty, or the two splits have different classes.
    """
    if not is_image_tree(path):
        raise RecordError(
            f"{path}: expected the folders train/<class>/ and test/<class>/ (or val/<class>/) with images, "
            f"found {listing(path)}"
        )
    classes = subfolders(path / "train")
    if not classes:
        raise RecordError(f"{path / 'train'}: expected one folder a class, found {listing(path / 'train')}")
    present = [path / name for name in TEST_FOLDERS if (path / name).is_dir()]
    fitting = [folder for folder in present if subfolders(folder) == classes]
    if not fitting:
        found = subfolders(present[0])
        raise RecordError(
            f"{present[0]}: expected the same {len(classes)} class folders as in train/; "
            f"missing: {_shortened(sorted(set(classes) - set(found)))}; "
            f"unknown: {_shortened(sorted(set(found) - set(classes)))}"
        )
    return ImageTree(list_classes(path / "train", classes), list_classes(fitting[0], classes), tuple(classes))


def decode(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """Decode images to ``(N, 3, size, size)`` uint8; others than size x size are resized and cropped at the centre.

    Raises:
        RecordError: Naming the first file that is not a readable image.
    """
    pixels = np.empty((len(files), 3, size, size), dtype=np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(files))):
            pixels[i] = _decode_one(files[i], size)

    # Threads: reading and JPEG decoding leave the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        list(pool.map(fill, range(0, len(files), _CHUNK)))
    return pixels


def native_size(file: Path) -> int:
    """The shorter side of an image, in pixels."""
    with open_image(file) as image:
        return min(image.size)


def _decode_one(file: Path, size: int) -> NDArray[np.uint8]:
    with open_image(file) as opened:
        image = opened.convert("RGB")
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1)


def list_classes(split: Path, classes: list[str]) -> FileList:
    """The images below ``split/CLASS`` of each class, sorted; a label is a position in ``classes``.

    Raises:
        RecordError: If a class has no image.
    """
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = split / name
        members = images_below(folder)
        if not members:
            raise RecordError(
                f"{folder}: class {name!r} has no image; expected files ending in {', '.join(sorted(SUFFIXES))}, "
                f"found {listing(folder)}"
            )
        files += members
        labels += [label] * len(members)
    return FileList(tuple(files), np.asarray(labels, dtype=np.int64))


def images_below(folder: Path) -> list[Path]:
    """The images of a folder at any depth, sorted."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())


def subfolders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    return sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def listing(path: Path) -> str:
    """Say what a folder holds, for messages."""
    if not path.exists():
        return "no such folder"
    if not path.is_dir():
        return "a file, not a folder"
    return _shortened(sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir()))


def _shortened(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit]) or "nothing"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
