"""Which images are trained on, which of them are poisoned, and what a record holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages
from clp_plugin.types import Ints, TargetRule

from ._random import Stream, numpy_generator
from .attacks.base import Attack, Pixels
from .datasets import Dataset
from .recipes import AttackSettings
from .record_files import RecordImages


@dataclass(frozen=True)
class Parts:
    """Disjoint positions in the training images.

    Attributes:
        train: Trained on, ``(N,)`` int64.
        benign: The benign budget, ``(B,)`` int64.
        poisoned: The part of ``train`` that gets the trigger, as positions in ``train``, ``(P,)`` int64.
    """

    train: Ints
    benign: Ints
    poisoned: Ints


def split(labels: Ints, rule: TargetRule, settings: AttackSettings) -> Parts:
    """Split training images into the part trained on, of which some are poisoned, and the benign budget.

    Poisoned are images whose label the attacker changes: a target image with a trigger would teach nothing new.

    Args:
        labels: Of all training images, ``(N,)``.
        rule: What the attacker wants.
        settings: Shares, poison rate and seed.

    Raises:
        ConfigError: If a part would be empty or there are not enough images to poison.
    """
    order = numpy_generator(settings.seed, Stream.SPLIT).permutation(len(labels))
    n_train, n_benign = round(settings.train_share * len(labels)), round(settings.benign_share * len(labels))
    chosen, benign = np.sort(order[:n_train]), np.sort(order[n_train : n_train + n_benign])
    candidates = np.flatnonzero(rule.counted(labels[chosen]))
    n_poisoned = round(settings.poison_rate * n_train)
    if not len(benign) or not n_poisoned:
        raise ConfigError(
            f"{len(labels)} training images are too few: benign share {settings.benign_share} makes {len(benign)}, "
            f"poison rate {settings.poison_rate} makes {n_poisoned}; expected at least one each"
        )
    if n_poisoned > len(candidates):
        raise ConfigError(
            f"poison rate {settings.poison_rate}: asks for {n_poisoned} images, but only {len(candidates)} of "
            f"{n_train} have a label that the attack changes; lower it"
        )
    poisoned = numpy_generator(settings.seed, Stream.POISON).choice(candidates, n_poisoned, replace=False)
    return Parts(chosen, benign, np.sort(poisoned))


def poisoned_training_set(
    dataset: Dataset, attack: Attack, rule: TargetRule, parts: Parts, *, stamp: bool = True
) -> ArrayImages:
    """The images trained on with the labels trained on; ``stamp`` puts the trigger on, otherwise only labels change."""
    pixels, labels = dataset.train_pixels[parts.train], dataset.train_labels[parts.train]
    if stamp:
        pixels[parts.poisoned] = attack.poison(pixels[parts.poisoned])
    labels[parts.poisoned] = rule.wanted(labels[parts.poisoned])
    return ArrayImages(pixels, labels, dataset.mean, dataset.std)


def record_images(dataset: Dataset, attack: Attack, rule: TargetRule, parts: Parts) -> RecordImages:
    """Clean test images, their triggered twins where they count for ASR, and the benign budget."""
    twins = np.flatnonzero(rule.counted(dataset.test_labels))
    return RecordImages(
        clean_pixels=dataset.test_pixels,
        clean_labels=dataset.test_labels,
        triggered_pixels=attack.poison(dataset.test_pixels[twins]),
        clean_index=twins,
        benign_pixels=dataset.train_pixels[parts.benign],
        benign_labels=dataset.train_labels[parts.benign],
    )


class TriggerHook:
    """Puts the trigger on the poisoned images of a training batch, after its augmentation."""

    def __init__(self, attack: Attack, poisoned: Ints) -> None:
        self.attack, self.poisoned = attack, poisoned

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        members = torch.from_numpy(np.flatnonzero(np.isin(indices.numpy(), self.poisoned))).to(images.device)
        if not len(members):
            return images
        stamped: Pixels = self.attack.poison(images[members].cpu().numpy())
        return images.index_copy(0, members, torch.from_numpy(stamped).to(images.device))
