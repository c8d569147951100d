"""CIFAR-10 in torchvision's layout (``cifar-10-batches-py``), read without running anything that the pickles ask for.

The files are Python pickles, made by Python 2 (the official ones) or 3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import RecordError
from clp_plugin.files.pickles import ForeignGlobalsError, load_plain
from clp_plugin.files.reading import open_regular
from clp_plugin.types import Ints

FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
_SHAPE = (3, 32, 32)


def is_batches_folder(path: Path) -> bool:
    """Whether ``path`` itself holds the batch files."""
    return (path / "test_batch").is_file() or (path / "data_batch_1").is_file()


def read_batches(
    folder: Path, names: tuple[str, ...], *, labels: str = "labels", num_classes: int = len(CLASSES)
) -> tuple[NDArray[np.uint8], Ints]:
    """Read and join batch files.

    Args:
        folder: The ``cifar-10-batches-py`` or ``cifar-100-python`` folder.
        names: ``TRAIN_FILES`` or ``TEST_FILES``; of CIFAR-100 ``("train",)`` or ``("test",)``.
        labels: The key of the labels; ``"fine_labels"`` for CIFAR-100.
        num_classes: Labels lie below it.

    Returns:
        Pixels ``(N, 3, 32, 32)`` uint8 and labels ``(N,)`` int64.

    Raises:
        RecordError: If a file is missing, damaged, asks for anything but arrays and containers, or has other contents.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RecordError(f"{folder}: expected the CIFAR files {', '.join(names)}; missing: {', '.join(missing)}")
    parts = [_batch(folder / name, labels, num_classes) for name in names]
    return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([found for _, found in parts])


def _content(path: Path) -> object:
    try:
        with open_regular(path, raises=RecordError, expected="a batch of CIFAR images") as file:
            return load_plain(file)
    except ForeignGlobalsError as error:
        raise RecordError(
            f"{path}: refused: the pickle asks for the global {error.names[0]}; a CIFAR batch needs only numpy arrays "
            "and plain containers. Get the file from a source you trust"
        ) from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not a readable pickle ({error}); copy it again") from error


def _batch(path: Path, key: str, num_classes: int) -> tuple[NDArray[np.uint8], Ints]:
    content = _content(path)
    if isinstance(content, dict):
        content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if not isinstance(content, dict) or not {"data", key} <= content.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise RecordError(f"{path}: expected a dictionary with 'data' and {key!r}, found {found}")
    try:
        data, labels = np.asarray(content["data"]), np.asarray(content[key])
    except ValueError as error:  # ragged lists
        raise RecordError(f"{path}: 'data' and {key!r} are not rectangular ({error})") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != np.prod(_SHAPE):
        raise RecordError(f"{path}: expected 'data' of (N, 3072) uint8, found {data.shape} {data.dtype}")
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise RecordError(f"{path}: expected {len(data)} whole-number labels, found {labels.shape} {labels.dtype}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise RecordError(f"{path}: labels must lie in 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}")
    return data.reshape(-1, *_SHAPE), labels.astype(np.int64)
