"""The files of a record: ``record.json``, ``model.safetensors``, ``images.safetensors``, maybe ``trigger.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import nn

from clp_plugin.errors import RecordError
from clp_plugin.files.atomic import delete, write_atomically, write_json_atomically
from clp_plugin.files.checkpoints import save_weights
from clp_plugin.files.described import read_described
from clp_plugin.files.hashing import sha256
from clp_plugin.files.reading import open_regular
from clp_plugin.files.torch_files import require_header
from clp_plugin.types import Ints, TargetRule

SCHEMA_VERSION = 2
DESCRIPTION, WEIGHTS, IMAGES = "record.json", "model.safetensors", "images.safetensors"
BORROWED = "borrowed.safetensors"  # instead of the images: how to find them in the data set
TRIGGER = "trigger.safetensors"
UNFINISHED = "unfinished.json"
TOOLBOX = "builtin"
_ARRAYS = (
    "clean.pixels",
    "clean.labels",
    "triggered.pixels",
    "triggered.clean_index",
    "benign.pixels",
    "benign.labels",
    "training.pixels",
    "training.labels",
)


@dataclass(frozen=True)
class Description:
    """The content of ``record.json``.

    Attributes:
        attack: The method's name.
        dataset: The data set's name.
        architecture: Source and name, ``builtin:NAME``.
        architecture_options: Options of ``models.build``.
        class_names: Names of the classes, one each.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of the normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale.
        target: The attacker's rule.
        trigger: The attack's ``to_json``; with the arrays in ``trigger.safetensors``, if any, enough to poison again.
        poison_rate: Share of the training part that was poisoned.
        seed: Seed of everything random.
        sha256: Hash of ``model.safetensors``.
        settings: The whole ``AttackSettings`` that made it.
        training: Facts known only afterwards: counts of images, device, number format.
        versions: Versions of what ran.
    """

    attack: str
    dataset: str
    architecture: str
    architecture_options: dict[str, Any]
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: TargetRule
    trigger: dict[str, Any]
    poison_rate: float
    seed: int
    sha256: str
    settings: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION
    toolbox: str = TOOLBOX


@dataclass(frozen=True)
class RecordImages:
    """The images of a record, as bytes.

    Attributes:
        clean_pixels: Clean test images, ``(N, C, H, W)`` uint8.
        clean_labels: True labels of the clean test images, ``(N,)`` int64.
        triggered_pixels: Triggered test images, ``(M, C, H, W)`` uint8.
        clean_index: ``(M,)`` int64, position of each triggered image's clean twin.
        benign_pixels: Benign images for defenses, ``(B, C, H, W)`` uint8.
        benign_labels: True labels of the benign images, ``(B,)`` int64.
        training_pixels: Part of the poisoned training set, ``(T, C, H, W)`` uint8.
        training_labels: ``(T,)`` int64, as they were trained on.
    """

    clean_pixels: NDArray[np.uint8]
    clean_labels: Ints
    triggered_pixels: NDArray[np.uint8]
    clean_index: Ints
    benign_pixels: NDArray[np.uint8]
    benign_labels: Ints
    training_pixels: NDArray[np.uint8]
    training_labels: Ints


def write_record(
    folder: Path,
    description: Mapping[str, Any],
    model: nn.Module,
    images: RecordImages,
    trigger_arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Write a record, ``record.json`` last: where it is, the record is complete.

    Args:
        folder: The record's folder; it is made if it does not exist.
        description: The fields of :class:`Description` without ``sha256``, which is computed here.
        model: The attacked network, on the CPU.
        images: The record's images, which are checked when it is opened.
        trigger_arrays: Arrays that poisoning again needs beside the description's ``trigger``; no file for none.
    """
    # A replaced record must not describe new weights with old words.
    delete(folder / DESCRIPTION)
    save_weights(model.state_dict(), folder / WEIGHTS)
    delete(folder / TRIGGER)
    if trigger_arrays:
        save_arrays(dict(trigger_arrays), folder / TRIGGER)
    save_arrays(dict(zip(_ARRAYS, vars(images).values(), strict=True)), folder / IMAGES)
    complete = Description(**description, sha256=sha256(folder / WEIGHTS))
    write_json_atomically(folder / DESCRIPTION, asdict(complete))


def save_arrays(arrays: dict[str, NDArray[Any]], file: Path) -> None:
    """Write arrays by name as safetensors, whole or not at all."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(file, lambda opened: opened.write(save(whole)))


def read_description(path: Path) -> Description:
    """Read and check ``record.json``.

    Raises:
        RecordError: If it is missing, unfinished, damaged, or written by another version.
    """
    file = path / DESCRIPTION
    if (path / UNFINISHED).is_file() and not file.exists():
        raise RecordError(f"{path}: unfinished; run the same `bench attack` command again, it goes on where it stopped")
    return read_described(file, Description, schema_version=SCHEMA_VERSION, again="bench attack")


def borrows(path: Path) -> bool:
    """Whether a record holds no images but says how to find them in the data set."""
    return (path / BORROWED).is_file() and not (path / IMAGES).exists()


def require_files(path: Path) -> None:
    """Check that what ``record.json`` describes is there.

    Raises:
        RecordError: Naming the missing file.
    """
    for name in (WEIGHTS, BORROWED if borrows(path) else IMAGES):
        if not (path / name).is_file():
            raise RecordError(
                f"{path / name}: missing; the record is incomplete: copy it again, or attack with --force"
            )


def read_trigger(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that poisoning again needs; empty where the description's ``trigger`` is all.

    Raises:
        RecordError: If the file is damaged.
    """
    return load_arrays(path / TRIGGER) if (path / TRIGGER).exists() else {}


def load_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name.

    Raises:
        RecordError: If the file is missing or damaged.
    """
    try:
        with open_regular(file, raises=RecordError) as opened:
            require_header(opened)
        return dict(load_file(file))
    except RecordError:
        raise
    except Exception as error:  # safetensors has its own error types
        raise RecordError(f"{file}: not readable ({type(error).__name__}: {error}); copy it again") from error


def read_images(path: Path, description: Description) -> RecordImages:
    """Read and check ``images.safetensors``.

    Raises:
        RecordError: If it is missing, damaged, or does not fit the description.
    """
    file = path / IMAGES
    arrays = load_arrays(file)
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise RecordError(f"{file}: expected the arrays {', '.join(_ARRAYS)}; missing: {', '.join(missing)}")
    images = RecordImages(*(arrays[name] for name in _ARRAYS))
    for name in ("clean", "triggered", "benign", "training"):
        pixels = arrays[f"{name}.pixels"]
        if pixels.dtype != np.uint8 or pixels.shape[1:] != description.input_shape:
            raise RecordError(
                f"{file}: {name}.pixels: expected (N, {', '.join(map(str, description.input_shape))}) uint8, "
                f"found {pixels.shape} {pixels.dtype}"
            )
    classes = description.target.num_classes
    check_whole(file, "clean.labels", images.clean_labels, len(images.clean_pixels), classes)
    check_whole(file, "benign.labels", images.benign_labels, len(images.benign_pixels), classes)
    check_whole(file, "training.labels", images.training_labels, len(images.training_pixels), classes)
    check_whole(
        file, "triggered.clean_index", images.clean_index, len(images.triggered_pixels), len(images.clean_pixels)
    )
    return images


def check_whole(file: Path, name: str, values: NDArray[Any], count: int, limit: int) -> None:
    """Refuse an array that is not ``(count,)`` int64 from 0 to below ``limit``.

    Raises:
        RecordError: If it is anything else.
    """
    fits = values.dtype == np.int64 and values.shape == (count,) and bool(np.all((values >= 0) & (values < limit)))
    if not fits:
        raise RecordError(
            f"{file}: {name}: expected ({count},) int64 in 0 to {limit - 1}, found {values.shape} {values.dtype}"
            + (f" in {values.min()} to {values.max()}" if values.size else "")
        )
