"""Choosing the images to train on and to poison, and those that a record holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages
from clp_plugin.types import Ints, TargetRule

from .attacks.base import Attack, Pixels
from .datasets import Dataset
from .randomness import Stream, numpy_generator
from .record_files import RecordImages
from .settings import AttackSettings
from .training.hooks import Batch, BatchHook


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


def split(labels: Ints, rule: TargetRule, settings: AttackSettings, *, keeps_labels: bool = False) -> Parts:
    """Split training images into the part trained on, of which some are poisoned, and the benign budget.

    Poisoned are images whose label the attacker changes: a target image with a trigger would teach nothing new. A
    clean-label attack poisons target images instead: the rate is of all images trained on, as in the papers, so that
    10 % of ten classes is the whole target class; where that class holds fewer, all of it is poisoned.

    Args:
        labels: True labels of all training images, ``(N,)``.
        rule: The labels that the attacker wants.
        settings: Shares, poison rate and seed.
        keeps_labels: Whether the attack is a clean-label one.

    Raises:
        ConfigError: If a part would be empty, there are not enough images to poison, or a clean-label attack is to be
            all-to-all.
    """
    order = numpy_generator(settings.seed, Stream.SPLIT).permutation(len(labels))
    n_train, n_benign = round(settings.train_share * len(labels)), round(settings.benign_share * len(labels))
    chosen, benign = np.sort(order[:n_train]), np.sort(order[n_train : n_train + n_benign])
    n_poisoned = round(settings.poison_rate * n_train)
    if keeps_labels:
        if rule.kind != "all_to_one":
            raise ConfigError(f"{settings.method} keeps labels and so has one target class; give it with --target")
        candidates = np.flatnonzero(labels[chosen] == rule.target)
        n_poisoned = min(n_poisoned, len(candidates))
    else:
        candidates = np.flatnonzero(rule.counted(labels[chosen]))
    if not len(benign) or not (n_poisoned or settings.poison_rate == 0):
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


def sampled(parts: Parts, count: int, seed: int) -> Parts:
    """The parts with a random ``count`` of the images trained on, at most all of them, poisoned as they were."""
    kept = np.sort(numpy_generator(seed, Stream.SAMPLE).permutation(len(parts.train))[:count])
    return replace(parts, train=parts.train[kept], poisoned=np.flatnonzero(np.isin(kept, parts.poisoned)))


def clean_training_set(dataset: Dataset, parts: Parts) -> ArrayImages:
    """The images trained on, as they were before the attack."""
    return ArrayImages(dataset.train_pixels[parts.train], dataset.train_labels[parts.train], dataset.mean, dataset.std)


def poisoned_training_set(
    clean: ArrayImages, attack: Attack, rule: TargetRule, poisoned: Ints, *, stamp: bool = True
) -> ArrayImages:
    """The images trained on with the labels trained on; ``stamp`` puts the trigger on, otherwise that is left to a hook."""
    pixels, labels = clean.pixels.copy(), clean.labels.copy()
    if len(poisoned):  # an attack that was read from a record may not know how to perturb
        pixels[poisoned] = attack.perturb(pixels[poisoned])
    if stamp:
        pixels[poisoned] = attack.poison(pixels[poisoned])
    labels[poisoned] = rule.wanted(labels[poisoned])
    return ArrayImages(pixels, labels, clean.mean, clean.std)


def record_images(
    dataset: Dataset, attack: Attack, rule: TargetRule, parts: Parts, *, sample: int, seed: int
) -> RecordImages:
    """Clean test images, their triggered twins where they count for ASR, the benign budget, and a part of the training set.

    Args:
        dataset: The data set that all images come from.
        attack: The attack as it is after the training.
        rule: The labels that the attacker wants.
        parts: The split of the training images.
        sample: Most images of the poisoned training set to keep; a random part, poisoned at its own rate.
        seed: Seed of that part.
    """
    twins = np.flatnonzero(rule.counted(dataset.test_labels))
    kept = sampled(parts, sample, seed)
    training = poisoned_training_set(clean_training_set(dataset, kept), attack, rule, kept.poisoned)
    return RecordImages(
        clean_pixels=dataset.test_pixels,
        clean_labels=dataset.test_labels,
        triggered_pixels=attack.poison(dataset.test_pixels[twins]),
        clean_index=twins,
        benign_pixels=dataset.train_pixels[parts.benign],
        benign_labels=dataset.train_labels[parts.benign],
        training_pixels=training.pixels,
        training_labels=training.labels,
    )


class TriggerHook(BatchHook):
    """Puts the trigger on the poisoned images of a training batch, after its augmentation."""

    def __init__(self, attack: Attack, poisoned: Ints) -> None:
        self.attack, self.poisoned = attack, poisoned

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        images = batch.images
        members = torch.from_numpy(np.flatnonzero(np.isin(indices.numpy(), self.poisoned))).to(images.device)
        if not len(members):
            return batch
        stamped: Pixels = self.attack.poison(images[members].cpu().numpy())
        stamped_images = images.index_copy(0, members, torch.from_numpy(stamped).to(images.device))
        return replace(batch, images=stamped_images)
