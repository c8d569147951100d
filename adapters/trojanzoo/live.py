"""A record of what TrojanZoo has in memory: its attack, its model with the attack's weights, and its data set."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.images import Pixels
from clp_plugin.records.parts import record_from, weights_hash
from clp_plugin.types import Ints, Provenance, Record

from .toolbox_facts import TOOLBOX

_MOST_BENIGN = 500  # as CLP's paper gives to the defenses it compares with


class LiveAttack(Protocol):
    """What is used of ``trojanvision.attacks.BackdoorAttack``."""

    name: str
    target_class: int
    folder_path: str

    def get_filename(self) -> str:
        """Stem of the files that hold its model and its mark."""
        ...

    def add_mark(self, x: Tensor) -> Tensor:
        """Images in [0, 1] with the trigger, where the command line put it."""
        ...


def live_record(attack: LiveAttack, model: Any, dataset: Any, *, seed: int) -> Record:
    """A record of the model as it is, judged on the data set's validation images as our other records are.

    The normalization stays inside the network, so that images are what TrojanZoo gives it, on the [0, 1] scale. They are
    rounded to bytes, and so is the trigger on them: with a trigger of fractional values up to half a level apart.

    Args:
        attack: TrojanZoo's attack; it stamps the trigger where its command line put it, a place that none of its files tells.
        model: Wrapper whose ``_model`` is the network.
        dataset: Gives the validation images, and training images for the benign budget.
        seed: Seed of the draw of the benign images.
    """
    network: nn.Module = copy.deepcopy(model._model).cpu().requires_grad_(True).eval()  # it freezes every parameter
    test_pixels, test_labels = _images(dataset.get_dataset("valid"))
    training = dataset.get_dataset("train")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(training))[:_MOST_BENIGN])
    benign_pixels, benign_labels = _images(training[int(position)] for position in drawn)
    device = next(model._model.parameters()).device

    def trigger(pixels: Pixels) -> Pixels:
        images = torch.from_numpy(pixels).to(device).float().div(255)
        with torch.no_grad():
            return _bytes(attack.add_mark(images))

    return record_from(
        network,
        np.concatenate([test_pixels, benign_pixels]),
        np.concatenate([test_labels, benign_labels]),
        trigger=trigger,
        target=attack.target_class,
        num_classes=dataset.num_classes,
        test=np.arange(len(test_labels)),
        benign=len(test_labels) + np.arange(len(benign_labels)),
        provenance=Provenance(
            toolbox=TOOLBOX,
            path=str(Path(attack.folder_path) / attack.get_filename()),
            sha256=weights_hash(network),
            attack=attack.name,
            dataset=dataset.name,
            architecture=f"{TOOLBOX}:{model.name}",
            poison_rate=float(getattr(attack, "poison_percent", float("nan"))),
            seed=seed,
            mean=(0.0,),
            std=(1.0,),
        ),
    )


def _images(pairs: Iterable[tuple[Tensor, int]]) -> tuple[Pixels, Ints]:
    """``(N, C, H, W)`` uint8 and ``(N,)`` int64 of pairs of an image in [0, 1] and its label."""
    images, labels = [], []
    for image, label in pairs:
        images.append(_bytes(image))
        labels.append(int(label))
    return np.stack(images), np.asarray(labels, dtype=np.int64)


def _bytes(images: Tensor) -> Pixels:
    rounded = images.detach().cpu().mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.asarray(rounded.numpy(), dtype=np.uint8)
