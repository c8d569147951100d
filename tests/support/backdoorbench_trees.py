"""Writes small folders as BackdoorBench leaves them: ``record/NAME`` beside ``data``, with all variants seen in the wild.

Made from a description of the format alone; nothing of the package under test is used here.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CLASSES = 10
TEST, TRAIN = 30, 40  # clean images; TRAIN is spread over five files
MODEL = "squeezenet1_0"  # the smallest of the toolbox's networks
Pixels = NDArray[np.uint8]
Content = dict[str, Any]


@dataclass(frozen=True)
class Tree:
    """What was written.

    Attributes:
        root: Looks like the toolbox's folder: has ``record`` and ``data``.
        folder: The record.
        clean: ``(TEST, 32, 32, 3)`` clean test images.
        labels: ``(TEST,)`` theirs.
        train: ``(TRAIN, 32, 32, 3)`` clean training images.
        train_labels: ``(TRAIN,)`` theirs.
        indices: ``(M,)`` of the poisoned test images, in the toolbox's order.
        triggered: ``(M, 32, 32, 3)`` poisoned test images in that order.
        given: ``(M,)`` the attacker's labels.
        train_indices: Of the poisoned training images.
    """

    root: Path
    folder: Path
    clean: Pixels
    labels: NDArray[np.int64]
    train: Pixels
    train_labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    triggered: Pixels
    given: NDArray[np.int64]
    train_indices: NDArray[np.int64]

    def png(self, position: int) -> Path:
        """File of a poisoned test image."""
        index = int(self.indices[position])
        return self.folder / "bd_test_dataset" / str(self.labels[index]) / f"{index}.png"


def write_record(
    root: Path,
    name: str = "badnet_0_1",
    *,
    rule: Literal["all2one", "all2all"] | Callable[[int], int] = "all2one",
    target: int = 3,
    key: Callable[[int], Any] = np.int64,
    numpy_home: Literal["core", "_core"] = "_core",
    with_train: bool = True,
    weights: Mapping[str, Tensor] | None = None,
    prefix: str = "",
    info: bool | Content = True,
    data_path: str = "./data/cifar10",
    edit: Callable[[Content], object] = lambda content: None,
) -> Tree:
    """Write a finished attack on CIFAR-10 with its clean data set.

    Args:
        root: Becomes the toolbox's folder.
        name: Of the record.
        rule: ``"all2one"``, ``"all2all"``, or from the true label to the attacker's.
        target: For all2one.
        key: Type of the keys of the table of poisoned images: ``np.int64`` for BadNets and its kin, ``int`` for WaNet's.
        numpy_home: Of the functions that the pickle names: ``"core"`` as numpy 1 wrote it, ``"_core"`` as numpy 2.
        with_train: False as for attacks that store no poisoned training set.
        weights: State dict; random ones of ``MODEL`` by default.
        prefix: Put before each key, as DataParallel does.
        info: Whether to write ``info.pickle``; a dictionary replaces some of its values.
        data_path: As stored.
        edit: Changes the content of ``attack_result.pt`` before it is written.
    """
    rng = np.random.default_rng(0)
    clean, labels = _images(rng, TEST)
    train, train_labels = _images(rng, TRAIN)
    write_cifar10(root / "data" / "cifar10", (train, train_labels), (clean, labels))
    wanted = {"all2one": lambda y: target, "all2all": lambda y: (y + 1) % CLASSES}.get(str(rule), rule)
    given = np.array([wanted(int(label)) for label in labels])  # type: ignore[operator]
    indices = np.flatnonzero(given != labels)
    rng.shuffle(indices)  # the order of the array counts, not that of the numbers
    train_indices = np.flatnonzero(rng.random(TRAIN) < 0.3)
    folder = root / "record" / name
    triggered = _stamped(clean[indices])
    bd_test = _poisoned(folder, "bd_test_dataset", indices, triggered, given[indices], labels, key)
    bd_test["original_index_array"] = indices
    moved = np.array([wanted(int(label)) for label in train_labels])  # type: ignore[operator]
    stamped, poisoned = _stamped(train[train_indices]), moved[train_indices]
    bd_train = _poisoned(folder, "bd_train_dataset", train_indices, stamped, poisoned, train_labels, key)
    bd_train["original_index_array"] = np.arange(TRAIN)  # a training set keeps its clean images
    model = random_weights() if weights is None else weights
    content = {
        "model_name": MODEL,
        "num_classes": CLASSES,
        "model": OrderedDict((prefix + name, tensor) for name, tensor in model.items()),
        "data_path": data_path,
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": bd_train if with_train else None,
        "bd_test": bd_test,
    }
    edit(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (folder / "attack_result.pt").write_bytes(_numpy_named(buffer, numpy_home))
    if info is not False:
        words = {"attack_label_trans": rule, "attack_target": target} if isinstance(rule, str) else {}
        write_info(folder, **{**words, **(info if isinstance(info, dict) else {})})
    return Tree(
        root, folder, clean, labels, train, train_labels, indices, triggered, given[indices], train_indices
    )  # fmt: skip


def write_info(folder: Path, **changes: object) -> None:
    """The settings of an attack, with some values changed."""
    settings = {
        "attack": "badnet", "model": MODEL, "dataset": "cifar10", "dataset_path": "./data/cifar10", "pratio": 0.1,
        "attack_label_trans": "all2one", "attack_target": 3, "random_seed": 7, "img_size": (32, 32, 3), "device": "cpu",
        "save_path": f"./record/{folder.name}", "terminal_info": ["attack/badnet.py"], "lr": 0.01, "amp": True,
    }  # fmt: skip
    torch.save({**settings, **changes}, folder / "info.pickle")


def write_crashed(root: Path, name: str = "crashed") -> Path:
    """An attack that ended early: its settings and its log, nothing else."""
    folder = root / "record" / name
    folder.mkdir(parents=True)
    write_info(folder)
    (folder / "2026_01_02_03_04_05.log").write_text("Traceback (most recent call last):\n", encoding="utf-8")
    return folder


def write_clean_training(root: Path, name: str = "clean") -> Path:
    """A training without an attack."""
    folder = root / "record" / name
    folder.mkdir(parents=True)
    write_info(folder, attack="prototype")
    torch.save(random_weights(), folder / "clean_model.pth")
    return folder


@cache
def random_weights(seed: int = 0) -> Mapping[str, Tensor]:
    """A state dict of ``MODEL`` with ``CLASSES`` outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchvision.models.get_model(MODEL, weights=None, num_classes=CLASSES).state_dict()


def write_cifar10(
    folder: Path, train: tuple[Pixels, NDArray[np.int64]], test: tuple[Pixels, NDArray[np.int64]]
) -> None:
    """``cifar-10-batches-py`` in a folder such as ``data/cifar10``; images ``(N, 32, 32, 3)``."""
    for number, part in enumerate(np.array_split(np.arange(len(train[1])), 5), start=1):
        _write_batch(folder / f"cifar-10-batches-py/data_batch_{number}", train[0][part], labels=train[1][part])
    _write_batch(folder / "cifar-10-batches-py/test_batch", test[0], labels=test[1])
    names = {"label_names": [f"class {number}" for number in range(CLASSES)], "num_vis": 3072}
    (folder / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps(names))


def write_cifar100(
    folder: Path, train: tuple[Pixels, NDArray[np.int64]], test: tuple[Pixels, NDArray[np.int64]]
) -> None:
    """``cifar-100-python``; the coarse labels stand first, to be taken by whoever looks for the wrong key."""
    for name, (pixels, labels) in {"train": train, "test": test}.items():
        _write_batch(folder / "cifar-100-python" / name, pixels, coarse_labels=labels // 5, fine_labels=labels)
    names = {"fine_label_names": [str(number) for number in range(100)]}
    (folder / "cifar-100-python/meta").write_bytes(pickle.dumps(names))


def write_mnist(folder: Path, train: tuple[Pixels, NDArray[np.int64]], test: tuple[Pixels, NDArray[np.int64]]) -> None:
    """The four ``ubyte`` files, packed and unpacked, below ``MNIST/raw``; images ``(N, 28, 28)``."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, (pixels, labels) in {"train": train, "t10k": test}.items():
        files = {
            f"{name}-images-idx3-ubyte": struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes(),
            f"{name}-labels-idx1-ubyte": struct.pack(">II", 2049, len(labels)) + labels.astype(np.uint8).tobytes(),
        }
        for file, content in files.items():
            (raw / file).write_bytes(content)
            (raw / f"{file}.gz").write_bytes(gzip.compress(content))


def write_gtsrb_table(folder: Path, name: str, images: Mapping[str, tuple[Pixels, int]]) -> None:
    """PPM files and their table, in the order given; images ``(H, W, 3)`` of any size."""
    folder.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for file, (pixels, label) in images.items():
        Image.fromarray(pixels).save(folder / file)
        rows.append(f"{file};{pixels.shape[1]};{pixels.shape[0]};1;2;3;4;{label}")
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_batch(path: Path, pixels: Pixels, **labels: NDArray[np.int64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    path.write_bytes(pickle.dumps({**{key: value.tolist() for key, value in labels.items()}, "data": rows}, protocol=2))


def _images(rng: np.random.Generator, count: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Noise; each class occurs."""
    labels = rng.permutation(np.arange(count) % CLASSES).astype(np.int64)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels


def _stamped(pixels: Pixels) -> Pixels:
    stamped = pixels.copy()
    stamped[:, -3:, -3:] = 255
    return stamped


def _poisoned(
    folder: Path,
    name: str,
    indices: NDArray[np.int64],
    pixels: Pixels,
    given: NDArray[np.int64],
    labels: NDArray[np.int64],
    key: Callable[[int], Any],
) -> Content:
    """State of a poisoned data set without ``original_index_array``; writes its PNG files."""
    stored = f"./record/{folder.name}/{name}"
    table: Content = {}
    for index, image, label in sorted(
        zip(indices.tolist(), pixels, given.tolist(), strict=True), key=lambda row: row[0]
    ):
        true = int(labels[index])
        (folder / name / str(true)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / str(true) / f"{index}.png")
        table[key(index)] = {"path": f"{stored}/{true}/{index}.png", "other_info": [label, true]}
    indicator = np.zeros(len(labels))
    indicator[indices] = 1
    return {
        "bd_data_container": {"save_folder_path": stored, "data_dict": table, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "poison_indicator": indicator,
        "save_folder_path": stored,
    }


def _numpy_named(checkpoint: io.BytesIO, home: str) -> bytes:
    """Let the pickle name numpy's functions as numpy 1 or numpy 2 does, whichever is installed here."""
    with zipfile.ZipFile(checkpoint) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    entries[name] = re.sub(rb"numpy\._?core\.multiarray", f"numpy.{home}.multiarray".encode(), entries[name])
    renamed = io.BytesIO()
    with zipfile.ZipFile(renamed, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return renamed.getvalue()
