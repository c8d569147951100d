"""CIFAR-10 in torchvision's layout (``cifar-10-batches-py``), read without running anything that the pickles ask for.

The files are Python pickles, made by Python 2 (the official ones) or 3. Only plain containers and numeric numpy arrays
are rebuilt, and those by the small stand-ins below: numpy's own unpickling code never sees the file.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import RecordError
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


def _batch(path: Path, key: str, num_classes: int) -> tuple[NDArray[np.uint8], Ints]:
    content = load_plain_pickle(path)
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


def load_plain_pickle(path: Path) -> Any:
    """Unpickle plain containers and numeric arrays; nothing else.

    Raises:
        RecordError: Naming the file and the global it asked for, or what is damaged.
    """
    try:
        with path.open("rb") as file:
            return _plain(_PlainUnpickler(file, encoding="latin1").load())
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, KeyError, MemoryError, ...
        raise RecordError(f"{path}: not a readable pickle ({type(error).__name__}: {error}); copy it again") from error


class _DtypeStandIn:
    """Takes what numpy pickles for a dtype: its code, then its byte order in the state."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or len(text) != 2 or text[0] not in "uifb" or not text[1].isdigit():
            raise RecordError(f"holds an array of type {code!r}; only plain numbers are expected")
        self.code, self.order = text, "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] in (">", b">") else "<"

    def real(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass
class _ArrayStandIn:
    """Filled by the pickle's state ``(version, shape, dtype, is_fortran, bytes)``; becomes a real array afterwards."""

    shape: tuple[int, ...] = ()
    dtype: _DtypeStandIn | None = None
    order: str = "C"
    raw: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, fortran, raw = state
        self.order, self.raw = ("F" if fortran else "C"), _bytes(raw)

    def real(self) -> NDArray[Any]:
        if not isinstance(self.dtype, _DtypeStandIn):
            raise RecordError("holds an array without a type")
        values = np.frombuffer(self.raw, dtype=self.dtype.real())
        return values.reshape(self.shape, order="F" if self.order == "F" else "C")


def _bytes(raw: object) -> bytes:
    # Python 2 byte strings arrive as latin1 text.
    return raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))  # type: ignore[arg-type]


def _reconstruct(*_: object) -> _ArrayStandIn:
    return _ArrayStandIn()


def _frombuffer(raw: object, dtype: _DtypeStandIn, shape: tuple[int, ...], order: str = "C") -> _ArrayStandIn:
    return _ArrayStandIn(shape, dtype, order, _bytes(raw))


def _scalar(dtype: _DtypeStandIn, raw: object) -> _ArrayStandIn:
    return _ArrayStandIn((), dtype, "C", _bytes(raw))


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    del encoding  # Python 3 writes bytes this way for old protocols, always as latin1
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    _STAND_INS = {  # noqa: RUF012 (a constant)
        ("numpy", "ndarray"): _ArrayStandIn,
        ("numpy", "dtype"): _DtypeStandIn,
        ("_codecs", "encode"): _latin1,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._STAND_INS:
            raise RecordError(
                f"refused: the pickle asks for the global {module}.{name}; a CIFAR-10 batch needs only numpy arrays "
                "and plain containers. Get the file from a source you trust"
            )
        return self._STAND_INS[module, name]


def _plain(value: Any) -> Any:
    """Stand-ins to arrays, inside containers too."""
    if isinstance(value, _ArrayStandIn):
        return value.real()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(i, (_ArrayStandIn, dict, list, tuple)) for i in value):
        return [_plain(item) for item in value]
    return value
