"""What follows from the settings of an attack before any training, and how a record describes it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from clp_plugin.errors import ConfigError
from clp_plugin.networks.devices import described
from clp_plugin.networks.precision import resolve
from clp_plugin.types import TargetRule

from .attacks.base import Attack
from .attacks.catalogue import create_attack
from .datasets import Dataset, load_dataset
from .evasions.base import Evasion
from .evasions.catalogue import create_evasion
from .poisoning import Parts, split
from .settings import AttackSettings

CLEAN = "clean"  # the name of the attack that poisoned nothing
_RECORDED_VERSIONS = ("clp-plugin", "torch", "numpy", "scikit-learn", "pillow")


@dataclass(frozen=True)
class AttackPlan:
    """All that follows from settings before any training.

    Attributes:
        dataset: The data set that all images come from.
        rule: The labels that the attacker wants.
        attack: The attack with its options, not yet prepared.
        parts: The split of the training images.
        evasions: How the training hides the backdoor.
    """

    dataset: Dataset
    rule: TargetRule
    attack: Attack
    parts: Parts
    evasions: tuple[Evasion, ...] = ()

    def description(self, settings: AttackSettings, device: str) -> dict[str, Any]:
        """The fields of a record's description, but for the hash of its weights; with the attack as it was prepared."""
        dtype = resolve(settings.recipe.precision, torch.device(device))
        return {
            "attack": "+".join([settings.method, *settings.evasions]) if len(self.parts.poisoned) else CLEAN,
            "dataset": settings.dataset,
            "architecture": f"builtin:{settings.model}",
            "architecture_options": dict(settings.model_options),
            "class_names": self.dataset.class_names,
            "input_shape": self.dataset.input_shape,
            "mean": self.dataset.mean,
            "std": self.dataset.std,
            "target": self.rule,
            "trigger": self.attack.to_json(),
            "poison_rate": _poison_rate(settings, self.parts),
            "seed": settings.seed,
            "settings": settings.to_json(),
            "training": {
                "images": len(self.parts.train),
                "poisoned": len(self.parts.poisoned),
                "benign": len(self.parts.benign),
                "device": described(device),
                "dtype": str(dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
            },
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _RECORDED_VERSIONS}},
        }


def plan_attack(settings: AttackSettings, attack_type: type[Attack] | None) -> AttackPlan:
    """Load the images, make the attack and choose the images to poison.

    Args:
        settings: All that decides what is attacked, and how.
        attack_type: The class behind ``settings.method``, where it is not one of ours.

    Raises:
        ConfigError: If the settings are impossible.
        RecordError: If the data set cannot be read.
    """
    dataset = load_dataset(
        settings.dataset,
        path=settings.data_path,
        n_train=settings.n_train,
        n_test=settings.n_test,
        seed=settings.seed,
        image_size=settings.image_size,
    )
    rule = settings.target_rule(dataset.num_classes)
    attack = create_attack(
        settings.method,
        dataset.input_shape,
        seed=settings.seed,
        options=settings.attack_options,
        attack_type=attack_type,
    )
    if settings.poison_rate == 0 and attack.needs_victim:
        raise ConfigError(
            f"{settings.method}: has no clean twin, as its trigger is trained together with the network; "
            "give a poison rate above 0, or the twin of another attack"
        )
    parts = split(dataset.train_labels, rule, settings, keeps_labels=attack.keeps_labels)
    evasions = tuple(create_evasion(name, options) for name, options in settings.evasions.items())
    return AttackPlan(dataset, rule, attack, parts, evasions)


def _poison_rate(settings: AttackSettings, parts: Parts) -> float:
    """The rate that was asked for, or what it came to where a clean-label attack found fewer images of its class."""
    asked, found = round(settings.poison_rate * len(parts.train)), len(parts.poisoned)
    return settings.poison_rate if found == asked else found / len(parts.train)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return "not installed"
