"""GTSRB, German traffic signs, as torchvision keeps it or as the original archives unpack.

43 classes of photographs from 15x15 to 250x250. The region of interest that the tables give is ignored, as in most of the
field: an image is the sign with its border of about a tenth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clp_plugin.errors import RecordError
from clp_plugin.files.reading import read_csv

from .image_folder import FileList, ImageTree, list_classes, listing

CLASSES = 43
SIDE = 32
# Of the training images, as public code commonly has them; not computed here. BackdoorBench does not normalize GTSRB.
MEAN, STD = (0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629)
TABLE = "GT-final_test.csv"
# The original first: torchvision's is the training set of an earlier stage of the competition, 26,640 images of 39,209.
_TRAIN = (Path("Final_Training", "Images"), Path("Training"))
_TEST = Path("Final_Test", "Images")


def list_gtsrb(path: Path) -> ImageTree:
    """List the images; none is opened.

    Args:
        path: The folder ``GTSRB``, or one that holds it or ``gtsrb/GTSRB``. Training images lie in
            ``GTSRB/Final_Training/Images/000xx`` (the original) or ``GTSRB/Training/000xx`` (torchvision's), test images
            in ``GTSRB/Final_Test/Images``; their table ``GT-final_test.csv`` lies beside ``GTSRB``, in it, in
            ``Final_Test``, or with the images.

    Returns:
        Lists with the class names ``"00000"`` to ``"00042"``, the names of the class folders.

    Raises:
        RecordError: If a folder, a class or the table is missing, or the table does not fit the images.
    """
    found = [
        (root, train)
        for root in (path, path / "GTSRB", path / "gtsrb" / "GTSRB")
        for train in _TRAIN
        if (root / train).is_dir()
    ]
    if not found:
        raise RecordError(
            f"{path}: expected GTSRB as torchvision keeps it (gtsrb/GTSRB/Training/00000/) or as its archives unpack "
            f"(GTSRB/Final_Training/Images/00000/), found {listing(path)}; give the folder that holds GTSRB"
        )
    root, train = found[0]
    names = tuple(f"{label:05d}" for label in range(CLASSES))
    return ImageTree(list_classes(root / train, list(names)), _list_test(root), names)


def _list_test(root: Path) -> FileList:
    images = root / _TEST
    files = {file.name: file for file in images.glob("*.ppm")}
    if not files:
        raise RecordError(f"{images}: expected the test images *.ppm, found {listing(images)}; unpack them there")
    places = (root.absolute().parent, root, images.parent, images)
    table = next((folder / TABLE for folder in places if (folder / TABLE).is_file()), None)
    if table is None:
        raise RecordError(
            f"{images}: expected the labels of the test images, {TABLE}, in one of {', '.join(map(str, places))}, "
            "found none; it comes in an archive of its own (GTSRB_Final_Test_GT.zip)"
        )
    labelled = sorted((label, name) for name, label in _read_table(table).items())
    missing = [name for _, name in labelled if name not in files]
    if missing:
        raise RecordError(
            f"{images}: expected the {len(labelled)} images of {table}, found {len(labelled) - len(missing)} of them; "
            f"the first missing is {missing[0]}; unpack the archive again"
        )
    labels = np.asarray([label for label, _ in labelled], dtype=np.int64)
    return FileList(tuple(files[name] for _, name in labelled), labels)


def _read_table(file: Path) -> dict[str, int]:
    """Name of each test image -> its class."""
    rows = read_csv(file, raises=RecordError, delimiter=";")
    try:
        labels = {row["Filename"]: int(row["ClassId"]) for row in rows}
    except (KeyError, ValueError) as error:
        raise RecordError(
            f"{file}: expected a table with the columns Filename and ClassId between semicolons, found "
            f"{type(error).__name__}: {error}; copy it again (GT-final_test.test.csv is another, without labels)"
        ) from error
    outside = sorted(set(labels.values()) - set(range(CLASSES)))
    if outside or not labels:
        raise RecordError(
            f"{file}: expected classes from 0 to {CLASSES - 1}, found {outside[0] if outside else 'no row'}; "
            "copy it again"
        )
    return labels
