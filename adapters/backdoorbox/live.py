"""A record of what BackdoorBox has in memory: an attack object with its network, its data sets and its trigger."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.errors import RecordError
from clp_plugin.files.atomic import write_atomically
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.images import Pixels
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.records.parts import Triggered, record_from, weights_hash
from clp_plugin.types import Ints, Provenance, Record

from ..parts.making import make_record
from ..parts.request import PartsRequest
from .record import TOOLBOX, BackdoorBoxRecords, checkpoints

_IMAGES, _TRIGGERED = "clp_plugin_images.npz", "clp_plugin_triggered.npz"
_LEVELS = 255
_ROUNDING = 1e-3  # grey levels that float32 may be away from a whole one


class LiveAttack(Protocol):
    """What is used of an object of ``core.attacks``."""

    test_dataset: Any

    def get_model(self) -> nn.Module:
        """The attacked network."""
        ...

    def get_poisoned_dataset(self) -> tuple[Any, Any]:
        """The poisoned training set, and the test set with the trigger on every image."""
        ...


def live_record(attack: LiveAttack, *, seed: int = 0) -> Record:
    """A record of an attack object as it is, judged on its test set as our other records are.

    Args:
        attack: An object of ``core.attacks`` after ``train()``, with transforms of its test set that leave whole grey levels.
        seed: The seed that the attack was made with, for tables.

    Raises:
        RecordError: If the test set's images are no whole grey levels, or its poisoned labels follow no rule.
    """
    pixels, labels, triggered, target = _test_set(attack)
    model = copy.deepcopy(unwrap(attack.get_model())).cpu().eval()
    return record_from(
        model,
        pixels,
        labels,
        trigger=Triggered(triggered, np.arange(len(triggered))),
        target=target,
        provenance=Provenance(
            toolbox=TOOLBOX,
            path="",
            sha256=weights_hash(model),
            attack=type(attack).__name__,
            dataset=type(attack.test_dataset).__name__,
            architecture=type(model).__name__,
            poison_rate=math.nan if (rate := _poison_rate(attack)) is None else rate,
            seed=seed,
            mean=(0.0,),
            std=(1.0,),
        ),
    )


def save_record(
    attack: LiveAttack,
    folder: str | Path,
    *,
    arch: str,
    arch_options: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    n_benign: int = 0,
    seed: int = 0,
) -> Path:
    """Describe the folder that ``attack.train()`` made, so that it is a record: images, trigger and target are stored beside.

    Args:
        attack: The attack object, with the network of the folder's last checkpoint.
        folder: The experiment's folder, which holds ``ckpt_epoch_N.pth``.
        arch: What builds the network: ``builtin:resnet18``, or ``CHECKOUT/core/models/resnet.py:ResNet`` with
            ``arch_options={"num": 18}``.
        arch_options: Options of the architecture.
        dataset: The data set's name, for tables; that of its class if None.
        n_benign: Number of test images that are kept for defenses that need some.
        seed: Seed of their draw.

    Returns:
        The folder.

    Raises:
        RecordError: If the folder holds no checkpoint of this network, or as of :func:`live_record`.
        CheckpointError: If the architecture is another.
    """
    folder = Path(folder)
    checkpoint = _own_checkpoint(attack, folder)
    pixels, labels, triggered, target = _test_set(attack)
    _write(folder / _IMAGES, x=pixels, y=labels)
    _write(folder / _TRIGGERED, x=triggered)
    make_record(
        PartsRequest(
            checkpoint=checkpoint,
            images=folder / _IMAGES,
            triggered=folder / _TRIGGERED,
            target=target,
            arch=arch,
            arch_options=arch_options or {},
            attack=type(attack).__name__,
            dataset=dataset or type(attack.test_dataset).__name__,
            poison_rate=_poison_rate(attack),
            n_benign=n_benign,
            seed=seed,
        ),
        folder,
        adapter=BackdoorBoxRecords(),
        force=True,
    )
    return folder


def _own_checkpoint(attack: LiveAttack, folder: Path) -> Path:
    """The last checkpoint of the folder, if it is of the attack's network as it is now."""
    found = checkpoints(folder)
    if not found:
        raise RecordError(f"{folder}: expected the folder of an experiment with ckpt_epoch_N.pth, found none")
    stored = {key.removeprefix("module."): value for key, value in load_checkpoint(found[-1]).items()}
    live = unwrap(attack.get_model()).state_dict()
    if stored.keys() != live.keys() or not all(torch.equal(stored[key], live[key].cpu()) for key in live):
        raise RecordError(
            f"{found[-1]} is not the network that the attack holds now; save the record after train() and before a repair, and "
            "let save_epoch_interval divide epochs"
        )
    return found[-1]


def _test_set(attack: LiveAttack) -> tuple[Pixels, Ints, Pixels, str]:
    """Clean test images with their labels, the same with the trigger, and the attacker's rule."""
    pixels, labels = _items(attack.test_dataset, "the test set")
    triggered, wanted = _items(attack.get_poisoned_dataset()[1], "the poisoned test set")
    if len(triggered) != len(pixels):
        raise RecordError(
            f"the poisoned test set: expected {len(pixels)} images as in the test set, found {len(triggered)}; the metric "
            "ASR_NoTarget of core.utils.test takes images out of it: make the attack's data sets anew"
        )
    return pixels, labels, triggered, _rule(labels, wanted)


def _rule(labels: Ints, wanted: Ints) -> str:
    """The attacker's rule in the words of ``--target``."""
    if len(set(wanted.tolist())) == 1:
        return str(wanted[0])
    classes = int(max(labels.max(), wanted.max())) + 1
    shifts = set(((wanted - labels) % classes).tolist())
    if len(shifts) == 1:
        return f"all+{shifts.pop()}"
    raise RecordError("the poisoned test set: its labels are neither one class nor the true ones shifted")


def _items(dataset: Any, name: str) -> tuple[Pixels, Ints]:
    images, labels = [], []
    for position in range(len(dataset)):  # a data set of torch ends by its length alone
        image, label = dataset[position]
        images.append(_bytes(image, name))
        labels.append(int(label))
    return np.stack(images), np.asarray(labels, dtype=np.int64)


def _bytes(image: object, name: str) -> Pixels:
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise RecordError(
            f"{name}: expected tensors (C, H, W), found {type(image).__name__}; end its transform in ToTensor"
        )
    levels = image.detach().cpu().float() * _LEVELS
    whole = levels.round()
    if not bool((levels - whole).abs().max() < _ROUNDING) or whole.min() < 0 or whole.max() > _LEVELS:
        raise RecordError(
            f"{name}: expected images in [0, 1] of whole grey levels, found {float(image.min()):g} to {float(image.max()):g}; "
            "normalize in the network, and put the trigger on before ToTensor"
        )
    return np.asarray(whole.to(torch.uint8).numpy(), dtype=np.uint8)


def _poison_rate(attack: LiveAttack) -> float | None:
    """The share that was poisoned; None for attacks that keep no such list."""
    training = attack.get_poisoned_dataset()[0]
    chosen = getattr(training, "poisoned_set", None)
    return None if chosen is None else len(chosen) / len(training)


def _write(path: Path, **arrays: Any) -> None:
    write_atomically(path, lambda file: np.savez(file, **arrays))
