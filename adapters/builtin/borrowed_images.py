"""Records without images: they borrow those of a data set that the user has, whatever its order and its file format."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from clp_plugin.config import config_file, dataset_folder, dataset_variable
from clp_plugin.errors import RecordError
from clp_plugin.records.exchange import TRAINING_SAMPLE
from clp_plugin.types import Ints

from .attacks.base import Attack, Pixels
from .attacks.catalogue import attack_class
from .datasets import Dataset, load_dataset
from .poisoning import Parts, record_images, sampled, split
from .record_files import (
    BORROWED,
    DESCRIPTION,
    TRIGGER,
    WEIGHTS,
    Description,
    RecordImages,
    check_whole,
    load_arrays,
    read_description,
    read_trigger,
    require_files,
    save_arrays,
)
from .settings import AttackSettings

_log = logging.getLogger(__name__)

_CELLS = 4  # a signature holds the mean colour of so many by so many parts of an image
# Levels of 0 to 255 by which a signature may differ on average from that of the same picture, encoded in another way.
_TOLERANCE = 6.0
_NAMES = (
    "test.hash",
    "benign.signatures",
    "benign.labels",
    "training.signatures",
    "training.labels",
    "training.poisoned",
)


def without_images(record: Path, out: Path) -> None:
    """A copy of a built-in record that says by signatures which images are its own, and holds none.

    A signature finds a picture again in another order of the data set, and where its pixels were encoded in another way.
    The sample of the poisoned training set is left out where poisoning it again would need the attacker's own network,
    as of CLA.

    Args:
        record: Folder of a record whose attack saw the whole of its data set, on the machine that made it.
        out: Folder of the copy, which must not exist.

    Raises:
        RecordError: If the record is damaged, its data set is not at hand, was used in part, or ``out`` exists.
    """
    description = read_description(record)
    if out.exists():
        raise RecordError(f"{out}: exists already; give another folder")
    settings = _settings(record, description)
    if settings.dataset != "digits" and (settings.n_train or settings.n_test):
        raise RecordError(f"{record}: was made from a part of {settings.dataset}, which nobody else can find again")
    dataset, attack = _dataset(record, description), _attack(record, description)
    parts = split(dataset.train_labels, description.target, settings, keeps_labels=attack.keeps_labels)
    kept = sampled(parts, 0 if _perturbs(attack) else TRAINING_SAMPLE, settings.seed)
    arrays: dict[str, NDArray[Any]] = {
        "test.hash": _hash(dataset.test_pixels),
        "benign.signatures": signatures(dataset.train_pixels[parts.benign]),
        "benign.labels": dataset.train_labels[parts.benign],
        "training.signatures": signatures(dataset.train_pixels[kept.train]),
        "training.labels": dataset.train_labels[kept.train],
        "training.poisoned": kept.poisoned,
    }
    out.mkdir(parents=True)
    for name in (WEIGHTS, TRIGGER):
        if (record / name).exists():
            shutil.copyfile(record / name, out / name)
    save_arrays(arrays, out / BORROWED)
    shutil.copyfile(record / DESCRIPTION, out / DESCRIPTION)
    require_files(out)


def borrowed_images(path: Path, description: Description, *, data: Path | None = None) -> RecordImages:
    """The images of a record that holds none: found in the data set, and triggered anew.

    Args:
        path: The record's folder.
        description: What its ``record.json`` says.
        data: Where the data set lies; the configured place if None.

    Raises:
        RecordError: If the data set is not at hand, or lacks one of the images.
    """
    found = _read(path / BORROWED, description)
    dataset = _dataset(path, description, data)
    if not np.array_equal(found["test.hash"], _hash(dataset.test_pixels)):
        _log.warning(
            "%s: the test images here are not byte by byte those that the network was judged on, or in another order; "
            "numbers may differ by a point or two from those that were told of it",
            path,
        )
    parts = Parts(
        train=_found_again(path, dataset, found["training.signatures"], found["training.labels"]),
        benign=_found_again(path, dataset, found["benign.signatures"], found["benign.labels"]),
        poisoned=found["training.poisoned"],
    )
    attack = _attack(path, description)
    return record_images(dataset, attack, description.target, parts, sample=len(parts.train), seed=description.seed)


def _read(file: Path, description: Description) -> dict[str, NDArray[Any]]:
    found = load_arrays(file)
    missing = [name for name in _NAMES if name not in found]
    if missing:
        raise RecordError(f"{file}: expected the arrays {', '.join(_NAMES)}; missing: {', '.join(missing)}")
    columns = _CELLS**2 * description.input_shape[0]
    for part in ("benign", "training"):
        rows = found[f"{part}.signatures"]
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != columns:
            raise RecordError(
                f"{file}: {part}.signatures: expected (N, {columns}) uint8, found {rows.shape} {rows.dtype}"
            )
        check_whole(file, f"{part}.labels", found[f"{part}.labels"], len(rows), description.target.num_classes)
    poisoned = found["training.poisoned"]
    check_whole(file, "training.poisoned", poisoned, poisoned.size, len(found["training.labels"]))
    return found


def signatures(pixels: Pixels) -> NDArray[np.uint8]:
    """Mean colours of 4 x 4 parts of each image ``(N, C, H, W)``, ``(N, 16 * C)`` uint8."""
    rows = np.array_split(np.arange(pixels.shape[2]), _CELLS)
    columns = np.array_split(np.arange(pixels.shape[3]), _CELLS)
    means = [
        pixels[:, :, row[0] : row[-1] + 1, column[0] : column[-1] + 1].mean(axis=(2, 3))
        for row in rows
        for column in columns
    ]
    return np.concatenate(means, axis=1).round().astype(np.uint8)


def _found_again(path: Path, dataset: Dataset, wanted: NDArray[np.uint8], labels: Ints) -> Ints:
    """Positions in the training images of those with these signatures and labels."""
    offered = signatures(dataset.train_pixels).astype(np.float32)
    positions = np.empty(len(wanted), dtype=np.int64)
    for label in np.unique(labels):
        own, candidates = np.flatnonzero(labels == label), np.flatnonzero(dataset.train_labels == label)
        if not len(candidates):
            raise _lost(path, dataset, f"no training image has label {label}")
        asked, choice = wanted[own].astype(np.float32), offered[candidates]
        distances = (asked**2).sum(1)[:, None] - 2 * asked @ choice.T + (choice**2).sum(1)
        positions[own] = candidates[distances.argmin(axis=1)]
    apart = np.abs(offered[positions] - wanted).mean(axis=1)
    if len(apart) and apart.max() > _TOLERANCE:
        raise _lost(path, dataset, f"{int((apart > _TOLERANCE).sum())} of {len(apart)} images are not among them")
    return positions


def _lost(path: Path, dataset: Dataset, why: str) -> RecordError:
    return RecordError(f"{path}: expected the training images of {dataset.name} that it was made from, but {why}")


def _dataset(path: Path, description: Description, data: Path | None = None) -> Dataset:
    settings = _settings(path, description)
    folder = dataset_folder(settings.dataset) if data is None else data
    if folder is None and settings.dataset != "digits":
        raise RecordError(
            f"{path}: needs the images of {settings.dataset}; say where they lie: --data FOLDER, "
            f"{dataset_variable(settings.dataset)}=FOLDER in the environment, or datasets: {{{settings.dataset}: "
            f"{{path: FOLDER}}}} in {config_file()}"
        )
    return load_dataset(
        settings.dataset,
        path=folder,
        n_train=settings.n_train,
        n_test=settings.n_test,
        seed=settings.seed,
        image_size=settings.image_size,
    )


def _attack(path: Path, description: Description) -> Attack:
    return attack_class(_settings(path, description).method).from_json(description.trigger, read_trigger(path))


def _settings(path: Path, description: Description) -> AttackSettings:
    try:
        return TypeAdapter(AttackSettings).validate_python(description.settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordError(f"{path / DESCRIPTION}: settings.{where}: {first['msg']}; the file was edited") from error


def _perturbs(attack: Attack) -> bool:
    return type(attack).perturb is not Attack.perturb


def _hash(pixels: Pixels) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(pixels.tobytes()).digest(), dtype=np.uint8)
