"""Complete settings of an attack, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clp_plugin.errors import ConfigError
from clp_plugin.types import TargetRule

from .training.recipe import RECIPES, Recipe


@dataclass(frozen=True)
class AttackSettings:
    """All that decides what an attack makes; equal settings on one machine make equal records.

    Attributes:
        method: A key of ``attacks.catalogue.ATTACKS``.
        dataset: A key of ``datasets.DATASETS`` or ``ALIASES``.
        model: A key of ``models.BUILDERS``.
        recipe: The recipe to train by.
        data_path: Folder of the data set, where it is read from files.
        n_train: Training images before the split into parts; None for all.
        n_test: Test images; None for all.
        image_size: Pixels a side, for ``folder``, ``gtsrb`` and ``tiny_imagenet``.
        model_options: Options of ``models.build``.
        attack_options: Options of the attack's ``create``.
        evasions: Keys of ``evasions.catalogue.EVASIONS`` to their options: how the training hides the backdoor.
        target: The target class, or None for all-to-all.
        poison_rate: Share of the training part that is poisoned, in [0, 1). 0 makes the attack's clean twin: the same
            images, network, seeds and trigger, and nothing poisoned.
        train_share: Share of the training images that are trained on.
        benign_share: Share of them that becomes the benign budget; the rest stays unused.
        trigger_after_augmentation: Put the trigger on after crop and flip, always where it is at test time; otherwise
            on the stored image, so that it moves with the crop.
        seed: Seed of everything random; non-negative.

    Source:
        The split into 95 % training, 1 % benign and 4 % unused images, and the rate of 10 %: CLP (ECCV 2022), 5.1.
    """

    method: str
    dataset: str
    model: str
    recipe: Recipe
    data_path: str | None = None
    n_train: int | None = None
    n_test: int | None = None
    image_size: int | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    evasions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    target: int | None = 0
    poison_rate: float = 0.1
    train_share: float = 0.95
    benign_share: float = 0.01
    trigger_after_augmentation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.poison_rate < 1:
            raise ConfigError(
                f"poison rate: expected a share from 0 (a clean twin) to below 1 (0.1 is 10 %), found {self.poison_rate}"
            )
        if self.evasions and self.poison_rate == 0:
            raise ConfigError("a clean twin has no backdoor to hide: leave out --evade, or give a poison rate above 0")
        if self.seed < 0:
            raise ConfigError(f"seed: expected a whole number from 0 on, found {self.seed}")
        shares = (self.train_share, self.benign_share)
        if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"expected positive train_share and benign_share of at most 1 together, found {shares}")

    def target_rule(self, num_classes: int) -> TargetRule:
        """The labels that the attacker wants, on a data set of ``num_classes``.

        Raises:
            ConfigError: If the target is outside the classes.
        """
        return TargetRule("all_to_all" if self.target is None else "all_to_one", num_classes, self.target)

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as plain JSON values; without ``evasions`` where there are none, as it always was."""
        return {name: value for name, value in asdict(self).items() if name != "evasions" or value}


PRESETS: Mapping[str, AttackSettings] = {
    "clp-paper": AttackSettings("badnets", "cifar10", "resnet18", RECIPES["clp-paper"]),
    "cifar10-resnet20": AttackSettings("badnets", "cifar10", "resnet20", RECIPES["small-network"]),
    "demo": AttackSettings(
        "badnets",
        "digits",
        "resnet18",
        RECIPES["demo"],
        n_train=10_500,
        n_test=2_000,
        model_options={"width": 32, "blocks": (1, 1, 1)},
        trigger_after_augmentation=True,
    ),
    # For matrices of many attacks and defenses: demo with half the channels. The paper's 1 % for the benign budget would
    # be 105 images, of which a few are held out to choose thresholds; 5 % is BackdoorBench's share, and about the
    # paper's number of 500.
    "small": AttackSettings(
        "badnets",
        "digits",
        "resnet18",
        RECIPES["demo"],
        n_train=10_500,
        n_test=1_000,
        model_options={"width": 16, "blocks": (1, 1, 1)},
        benign_share=0.05,
        trigger_after_augmentation=True,
    ),
}
