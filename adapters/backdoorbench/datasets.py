"""The clean data sets in the toolbox's layouts, in its order, with its test transform: Resize, ToTensor, Normalize."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import RecordError, unknown_name
from clp_plugin.files.reading import read_bytes, read_csv
from clp_plugin.images import ArrayImages, PickedImages

from ..image_sets import cifar_batches
from ..image_sets.image_files import DecodedFiles
from .attack_result import AttackResult
from .toolbox_facts import ROOT_VARIABLE

Split = Literal["train", "test"]
_GTSRB_CLASSES = 43
_ANY_COUNT = -1  # number of images
_LARGEST_MNIST = 64 << 20


@dataclass(frozen=True)
class DatasetFacts:
    """The toolbox's facts about a data set.

    Attributes:
        name: The data set's name in the toolbox.
        num_classes: Number of classes.
        shape: ``(C, H, W)`` of an image as the network takes it.
        mean: Mean of its normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of its normalization, per channel, on the [0, 1] scale.
        holds: The names that must lie in the data set's folder.
    """

    name: str
    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    holds: str


FACTS: Mapping[str, DatasetFacts] = {
    facts.name: facts
    for facts in (
        DatasetFacts("mnist", 10, (1, 28, 28), (0.5,), (0.5,), "MNIST/raw"),
        DatasetFacts(
            "cifar10", 10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), "cifar-10-batches-py"
        ),
        DatasetFacts(
            "cifar100", 100, (3, 32, 32), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "cifar-100-python"
        ),
        DatasetFacts("gtsrb", _GTSRB_CLASSES, (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "Test/GT-final_test.csv"),
        DatasetFacts(
            "tiny", 200, (3, 64, 64), (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), "tiny-imagenet-200/val"
        ),
        DatasetFacts("imagenet", 1000, (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "val"),
    )
}


def facts_of(name: str, path: Path) -> DatasetFacts:
    """Facts about a data set by the toolbox's name.

    Raises:
        RecordError: If it is unknown here; ``path`` is the file that names it.
    """
    if name not in FACTS:
        raise RecordError(f"{path}: {unknown_name('data set', name, FACTS)}")
    return FACTS[name]


def find_data_root(result: AttackResult, *, checkout: Path | None = None) -> Path:
    """The folder of the record's clean data set, such as ``data/cifar10`` with ``cifar-10-batches-py`` in it.

    Looked for beside the ``record`` folder that the record lies in, then in the checkout, then where the record says,
    from the current folder. The toolbox itself takes the first ``record`` in the path for its root, which goes wrong
    below folders such as ``recordings``; here the record's place decides.

    Args:
        result: The record's attack result.
        checkout: The toolbox's root; the one in ``$BACKDOORBENCH_ROOT`` if None.

    Raises:
        RecordError: If it lies in none of these places; names them all.
    """
    facts = facts_of(result.dataset, result.folder)
    below = _below_data(result)
    variable = os.environ.get(ROOT_VARIABLE)
    folder = result.folder.absolute()
    # The record, or all records, may be a link; the data may lie beside the link or beside what it leads to.
    beside = [folder.parent.parent, folder.parent.resolve().parent, folder.resolve().parent.parent]
    roots = [*beside, checkout, Path(variable) if variable else None]
    places = [root / below for root in roots if root is not None] + [Path(result.data_path).absolute()]
    for place in places:
        if (place / facts.holds).exists():
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise RecordError(
        f"{result.folder}: cannot find its clean images: expected {result.dataset} with {facts.holds} in one of: {looked}. "
        f"Put the data set there, or set {ROOT_VARIABLE} to the checkout that has it"
    )


def _below_data(result: AttackResult) -> Path:
    """``data/cifar10``, whatever stood before it."""
    parts = PurePosixPath(result.data_path.replace("\\", "/")).parts
    start = len(parts) - 1 - parts[::-1].index("data") if "data" in parts else None
    return Path(*parts[start:]) if start is not None else Path("data", result.dataset)


def read_split(facts: DatasetFacts, root: Path, split: Split) -> ArrayImages | PickedImages:
    """All clean images of one split; position i is what the toolbox calls index i.

    Args:
        facts: The toolbox's facts about the data set.
        root: The folder that :func:`find_data_root` returns.
        split: The split to read: ``"train"`` or ``"test"``.

    Raises:
        RecordError: If files are missing or damaged.
    """
    readers: Mapping[str, Callable[[Path, Split], ArrayImages | PickedImages]] = {
        "mnist": lambda place, part: _mnist(facts, place, part),
        "cifar10": lambda place, part: _cifar(facts, place / "cifar-10-batches-py", _CIFAR10[part]),
        "cifar100": lambda place, part: _cifar(facts, place / "cifar-100-python", (part,), labels="fine_labels"),
        "gtsrb": lambda place, part: _from_files(facts, *_gtsrb(place, part)),
        "tiny": lambda place, part: _from_files(facts, *_tree(place / "tiny-imagenet-200" / _VAL[part], facts)),
        "imagenet": lambda place, part: _from_files(facts, *_tree(place / _VAL[part], facts)),
    }
    return readers[facts.name](root, split)


_CIFAR10 = {"train": cifar_batches.TRAIN_FILES, "test": cifar_batches.TEST_FILES}
_VAL = {"train": "train", "test": "val"}


def _cifar(facts: DatasetFacts, folder: Path, files: tuple[str, ...], labels: str = "labels") -> ArrayImages:
    pixels, found = cifar_batches.read_batches(folder, files, labels=labels, num_classes=facts.num_classes)
    return ArrayImages(pixels, found, facts.mean, facts.std)


def _mnist(facts: DatasetFacts, root: Path, split: Split) -> ArrayImages:
    part = {"train": "train", "test": "t10k"}[split]
    pixels = _read_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", (_ANY_COUNT, 28, 28))
    labels = _read_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", (_ANY_COUNT,))
    if len(labels) and labels.max() >= facts.num_classes:
        raise RecordError(f"{root}: MNIST has labels up to {labels.max()}, expected 0 to {facts.num_classes - 1}")
    return ArrayImages(pixels[:, None], labels.astype(np.int64), facts.mean, facts.std)


def _read_idx(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes with a header: two zeros, 8 for bytes, the number of dimensions, then each of them, big-endian."""
    content = read_bytes(file, raises=RecordError, limit=_LARGEST_MNIST)
    start = 4 + 4 * len(shape)
    sides = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = (sides[0], *shape[1:])
    if (
        content[:4] != bytes([0, 0, 8, len(shape)])
        or tuple(sides) != expected
        or len(content) - start != math.prod(sides)
    ):
        raise RecordError(
            f"{file}: expected MNIST's bytes of shape {shape}, found {len(content)} bytes; unpack it again"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=start).reshape(
        expected
    )  # of what may be written to, as torch asks


def _from_files(facts: DatasetFacts, files: Sequence[Path], labels: Sequence[int]) -> PickedImages:
    count = len(files)
    found = np.asarray(labels, dtype=np.int64)
    return PickedImages(DecodedFiles(files, facts.shape), found, facts.mean, facts.std, np.arange(count))


def _gtsrb(root: Path, split: Split) -> tuple[list[Path], list[int]]:
    """The toolbox's own order: class by class as each class's table has them; for the test set one table."""
    if split == "test":
        return _gtsrb_table(root / "Test", "GT-final_test.csv")
    tables = [_gtsrb_table(root / "Train" / f"{label:05d}", f"GT-{label:05d}.csv") for label in range(_GTSRB_CLASSES)]
    return [file for files, _ in tables for file in files], [label for _, labels in tables for label in labels]


def _gtsrb_table(folder: Path, name: str) -> tuple[list[Path], list[int]]:
    rows = read_csv(folder / name, raises=RecordError, delimiter=";")
    try:
        if not rows:
            raise ValueError("no rows")
        labels = [int(row["ClassId"]) for row in rows]
        if not 0 <= min(labels) <= max(labels) < _GTSRB_CLASSES:
            raise ValueError(f"classes {min(labels)} to {max(labels)}")
        return [folder / row["Filename"] for row in rows], labels
    except (KeyError, ValueError) as error:
        raise RecordError(
            f"{folder / name}: expected a table Filename;...;ClassId of GTSRB, found {type(error).__name__}: {error}"
        ) from error


def _tree(folder: Path, facts: DatasetFacts) -> tuple[list[Path], list[int]]:
    """List files as torchvision's ImageFolder does. The toolbox leaves out unreadable images; here they are errors."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except (FileNotFoundError, RuntimeError) as error:
        raise RecordError(f"{folder}: expected a folder of images a class ({error})") from error
    if len(found.classes) != facts.num_classes:
        remedy = (
            " (val must be sorted into class folders, as the toolbox's download does)" if facts.name == "tiny" else ""
        )
        raise RecordError(f"{folder}: expected {facts.num_classes} classes, found {len(found.classes)}{remedy}")
    return [Path(file) for file, _ in found.samples], [label for _, label in found.samples]
