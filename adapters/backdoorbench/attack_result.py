"""``attack_result.pt`` and ``info.pickle``, read safely and checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from clp_plugin.errors import CheckpointError, RecordError
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.types import Ints, TargetRule

FILE = "attack_result.pt"
INFO = "info.pickle"
_KEYS = ("model_name", "num_classes", "model", "data_path", "img_size", "clean_data", "bd_train", "bd_test")
_MAX_COUNT = 100_000  # classes or pixels a side; more would take memory that no file here warrants


@dataclass(frozen=True)
class PoisonedSet:
    """The poisoned images of one split.

    Attributes:
        folder: The folder that they lie in now, below the record, whatever path was stored.
        indices: ``(M,)`` positions in the clean set, in the order in which the toolbox iterates.
        true_labels: ``(M,)`` labels that the images truly have.
        given_labels: ``(M,)`` labels that the attacker wants for them.
        suffix: Suffix of the files, ``".png"``.
    """

    folder: Path
    indices: Ints
    true_labels: Ints
    given_labels: Ints
    suffix: str = ".png"

    @property
    def files(self) -> list[Path]:
        """``FOLDER/TRUE_LABEL/INDEX.png`` of every image."""
        return [
            self.folder / str(label) / f"{index}{self.suffix}"
            for label, index in zip(self.true_labels.tolist(), self.indices.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class AttackResult:
    """All that the toolbox's attack stored.

    Attributes:
        folder: The record's folder.
        model_name: The network's name in the toolbox.
        num_classes: Number of classes.
        state_dict: The attacked network's weights, as they were stored.
        dataset: The clean data set's name in the toolbox.
        data_path: The stored path of that data set, usually relative to the toolbox's root.
        image_size: Size of an image, ``(H, W, C)``.
        test: Poisoned test images.
        train: Poisoned training images; None for attacks that store none.
        target: The attacker's rule, read off the labels of the test images.
        attack: Name of the attack; ``"unknown"`` without info.pickle.
        poison_rate: Share of the training images that was poisoned, in [0, 1]; NaN if not stored.
        seed: Seed of the attack; 0 if not stored.
        stored_name: The record's name when it was made, which the stored paths of its images carry.
    """

    folder: Path
    model_name: str
    num_classes: int
    state_dict: Mapping[str, Tensor]
    dataset: str
    data_path: str
    image_size: tuple[int, int, int]
    test: PoisonedSet
    train: PoisonedSet | None
    target: TargetRule
    attack: str
    poison_rate: float
    seed: int
    stored_name: str


def read_attack_result(folder: Path, *, trust: bool = False) -> AttackResult:
    """Read a record's model and poisoned sets; no image is opened.

    Args:
        folder: The record's folder.
        trust: Allow pickles that run code.

    Raises:
        RecordError: If the record is incomplete or inconsistent.
        CheckpointError: If a file cannot be read safely.
    """
    path = folder / FILE
    if not path.is_file():
        raise RecordError(f"{folder}: {why_incomplete(folder)}")
    content = read_pickle_checkpoint(path, trust=trust)
    if not isinstance(content, Mapping):
        raise RecordError(f"{path}: expected a dictionary, found {type(content).__name__}; run the attack again")
    missing = [key for key in _KEYS if key not in content]
    if missing:
        held = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise RecordError(f"{path}: expected the keys {', '.join(_KEYS)}; missing {', '.join(missing)}, found {held}")
    info = read_info(folder, trust=trust)
    classes = read_count(content["num_classes"], path, "num_classes")
    test = _poisoned_set(content["bd_test"], folder, "bd_test")
    return AttackResult(
        folder=folder,
        model_name=_text(content["model_name"], path, "model_name"),
        num_classes=classes,
        state_dict=read_state_dict(content["model"], path),
        dataset=_text(content["clean_data"], path, "clean_data"),
        data_path=_text(content["data_path"], path, "data_path"),
        image_size=_image_size(content["img_size"], path),
        test=test,
        train=None if content["bd_train"] is None else _poisoned_set(content["bd_train"], folder, "bd_train"),
        target=_target_rule(test, classes, info, path),
        attack=str(info.get("attack") or "unknown"),
        poison_rate=float(info["pratio"]) if isinstance(info.get("pratio"), (int, float)) else float("nan"),
        seed=int(info["random_seed"]) if isinstance(info.get("random_seed"), int) else 0,
        stored_name=_stored_name(content["bd_test"], folder),
    )


def read_info(folder: Path, *, trust: bool = False) -> dict[str, Any]:
    """The attack's settings; empty if there are none.

    Raises:
        CheckpointError: If the file is damaged or asks for more than plain values.
    """
    path = folder / INFO
    if not path.is_file():
        return {}
    content = read_pickle_checkpoint(path, trust=trust)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary of settings, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def why_incomplete(folder: Path) -> str:
    """Say why a folder holds no attack result that can be read."""
    if (folder / "clean_model.pth").is_file():
        return f"a clean training run: clean_model.pth but no {FILE}, so there is no attack to repair"
    if (folder / INFO).is_file():
        return f"no {FILE}: the attack crashed or still runs; its .log says more"
    return f"no {FILE}; expected a record of BackdoorBench"


def _poisoned_set(state: Any, folder: Path, key: str) -> PoisonedSet:
    where = f"{folder / FILE}: {key}"
    try:
        container = state["bd_data_container"]
        entries: Mapping[Any, Any] = container["data_dict"]
        stored, suffix = str(container["save_folder_path"]), str(container["save_file_format"])
        order = [int(index) for index in state["original_index_array"]]
        by_index = {int(index): entry for index, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(
            f"{where}: expected the state of a poisoned data set (bd_data_container, original_index_array), "
            f"found {type(error).__name__}: {error}; run the attack again with BackdoorBench 2"
        ) from error
    name = PurePosixPath(stored.replace("\\", "/")).name
    # bd_train iterates over all training images; only the poisoned ones have an entry.
    indices = np.asarray([index for index in order if index in by_index], dtype=np.int64)
    if key == "bd_test" and len(indices) != len(order):
        raise RecordError(
            f"{where}: expected a poisoned image for each of its {len(order)} indices, {len(order) - len(indices)} have none"
        )
    try:
        pairs = [[int(label) for label in by_index[index]["other_info"][:2]] for index in indices.tolist()]
        labels = np.asarray(pairs, dtype=np.int64).reshape(len(indices), 2)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise RecordError(
            f"{where}: expected {{'path', 'other_info': [given label, true label]}} for each image, "
            f"found {type(error).__name__}: {error}"
        ) from error
    # Absolute, because its images are read later, when the current folder may be another.
    return PoisonedSet(folder.absolute() / name, indices, labels[:, 1].copy(), labels[:, 0].copy(), suffix)


def _stored_name(state: Any, folder: Path) -> str:
    """``NAME`` of ``./record/NAME/bd_test_dataset``."""
    parts = PurePosixPath(str(state["bd_data_container"]["save_folder_path"]).replace("\\", "/")).parts
    return parts[-2] if len(parts) > 1 and parts[-2] not in ("record", "..", "/") else folder.name


def _target_rule(test: PoisonedSet, classes: int, info: Mapping[str, Any], path: Path) -> TargetRule:
    """The rule that the stored labels follow; the settings must not say otherwise."""
    given, true = test.given_labels, test.true_labels
    if not len(given):
        raise RecordError(f"{path}: bd_test is empty, so there is nothing to measure; run the attack again")
    if max(given.max(), true.max()) >= classes or min(given.min(), true.min()) < 0:
        raise RecordError(f"{path}: bd_test has labels {given.min()} to {given.max()}, expected 0 to {classes - 1}")
    said = str(info.get("attack_label_trans", ""))
    if np.array_equal(given, (true + 1) % classes) and (said == "all2all" or len(np.unique(given)) > 1):
        rule = TargetRule("all_to_all", classes)
    elif len(np.unique(given)) == 1:
        rule = TargetRule("all_to_one", classes, int(given[0]))
    else:
        shifts = np.unique((given - true) % classes)
        raise RecordError(
            f"{path}: the triggered images are given neither one label (all2one) nor (y + 1) mod {classes} (all2all); "
            f"found shifts {', '.join(map(str, shifts[:5].tolist()))}. Other rules are not supported"
        )
    found, wanted = "all2all" if rule.kind == "all_to_all" else "all2one", info.get("attack_target")
    other_target = found == "all2one" and isinstance(wanted, int) and wanted != rule.target
    if said in ("all2one", "all2all") and (said != found or other_target):
        raise RecordError(
            f"{path.parent}: {INFO} says {said} with target {wanted}, the labels of bd_test say {found} with target "
            f"{rule.target}; the two files belong to different attacks"
        )
    return rule


def read_state_dict(value: Any, path: Path) -> dict[str, Tensor]:
    """The weights under ``model`` of one of the toolbox's files.

    Raises:
        CheckpointError: If they are something else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise CheckpointError(f"{path}: expected a state dict under 'model', found {type(value).__name__}")
    return {str(key): tensor.detach() for key, tensor in value.items()}


def _image_size(value: Any, path: Path) -> tuple[int, int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 3 or value[2] not in (1, 3):
        raise RecordError(f"{path}: img_size: expected (height, width, channels) with 1 or 3 channels, found {value!r}")
    height, width, channels = (read_count(number, path, "img_size") for number in value)
    return height, width, channels


def _text(value: Any, path: Path, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise RecordError(f"{path}: {key}: expected a name, found {value!r}")
    return value


def read_count(value: Any, path: Path, key: str) -> int:
    """A whole number of at least 1 under ``key`` of one of the toolbox's files.

    Raises:
        RecordError: If it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= _MAX_COUNT:
        raise RecordError(f"{path}: {key}: expected a positive whole number, found {value!r}")
    return int(value)
