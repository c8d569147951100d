"""Tiny ImageNet as Stanford's archive unpacks: ``tiny-imagenet-200`` with ``wnids.txt``, ``train/`` and ``val/``.

200 classes of 64x64 images, 500 a class in ``train`` and 50 in ``val``; some are grey. The labels of the archive's
``test`` were never published: ``val`` is the test set, as everywhere in the field.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clp_plugin.errors import RecordError
from clp_plugin.files.reading import read_text

from .image_folder import SUFFIXES, FileList, ImageTree, list_classes, listing

FOLDER = "tiny-imagenet-200"
SIDE = 64
# Of the training images, as public code commonly has them; not computed here. BackdoorBench divides by
# (0.2302, 0.2265, 0.2262) instead.
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
_CLASSES, _ANNOTATIONS = "wnids.txt", "val_annotations.txt"


def list_tiny_imagenet(path: Path) -> ImageTree:
    """List the images; none is opened.

    Labels are positions in the sorted WordNet names, as torchvision's ImageFolder numbers them, not in the order of
    ``wnids.txt``. ``words.txt`` and the boxes are not read.

    Args:
        path: ``tiny-imagenet-200`` or the folder that holds it. ``val`` may be as it comes, with all images in
            ``val/images`` and their classes in ``val/val_annotations.txt``, or sorted into ``val/<class>/``.

    Raises:
        RecordError: If a file, a class or an annotation is missing or damaged.
    """
    root = next((folder for folder in (path, path / FOLDER) if (folder / _CLASSES).is_file()), None)
    if root is None:
        raise RecordError(
            f"{path}: expected Tiny ImageNet as its archive unpacks ({FOLDER}/ with {_CLASSES}, train/ and val/), "
            f"found {listing(path)}; give that folder, or read class folders of your own as dataset 'folder'"
        )
    classes = _read_classes(root / _CLASSES)
    return ImageTree(list_classes(root / "train", classes), _list_val(root / "val", classes), tuple(classes))


def _read_classes(file: Path) -> list[str]:
    classes = sorted(set(_lines(file)))
    if not classes:
        raise RecordError(f"{file}: expected one WordNet name a line, found an empty file; unpack the archive again")
    return classes


def _list_val(val: Path, classes: list[str]) -> FileList:
    # The usual scripts that sort val leave the annotations there, and sometimes the folder.
    loose = {file.name: file for file in (val / "images").glob("*") if file.suffix.lower() in SUFFIXES}
    if not loose:
        if not any((val / name).is_dir() for name in classes):
            raise RecordError(
                f"{val}: expected images/ and {_ANNOTATIONS}, or one folder a class, found {listing(val)}; "
                "unpack the archive again"
            )
        return list_classes(val, classes)
    labels = {name: label for label, name in enumerate(classes)}
    labelled = [_labelled(val, line, loose, labels) for line in _lines(val / _ANNOTATIONS)]
    if not labelled:
        raise RecordError(f"{val / _ANNOTATIONS}: expected one image a line, found none; unpack the archive again")
    # In the order that the sorted layout has: a seed chooses the same images from both.
    labelled.sort()
    return FileList(tuple(file for _, file in labelled), np.asarray([label for label, _ in labelled], dtype=np.int64))


def _labelled(val: Path, line: str, files: dict[str, Path], labels: dict[str, int]) -> tuple[int, Path]:
    name, _, rest = line.partition("\t")
    wnid = rest.partition("\t")[0]
    if wnid not in labels:
        raise RecordError(
            f"{val / _ANNOTATIONS}: expected image, tab, class of {_CLASSES}, found {line!r}; unpack the archive again"
        )
    if name not in files:
        raise RecordError(
            f"{val / 'images'}: expected {name}, which {_ANNOTATIONS} names, found {len(files)} other images; "
            "unpack the archive again"
        )
    return labels[wnid], files[name]


def _lines(file: Path) -> list[str]:
    """The lines that are not blank."""
    return [line.strip() for line in read_text(file, raises=RecordError).splitlines() if line.strip()]
