"""All that an attacker has at hand before the victim is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from clp_plugin.images import ArrayImages
from clp_plugin.types import Ints, TargetRule

from .randomness import Stream, torch_seed
from .training.recipe import Recipe
from .training.train import Progress, train


def preparation_seed(seed: int) -> int:
    """The seed of networks that an attacker trains before the victim."""
    return torch_seed(seed, Stream.PREPARATION)


@dataclass(frozen=True)
class Scene:
    """The training images and the means to train on them; no test image.

    Attributes:
        images: The images trained on, with their true labels.
        poisoned: Positions in ``images`` of those that will be poisoned, ``(P,)`` int64.
        rule: The labels that the attacker wants.
        new_model: An untrained network of the victim's architecture, with initial weights of its own.
        recipe: The recipe that the victim will be trained by.
        seed: Seed of everything random.
        device: The device to train on.
        progress: Told about every training.
    """

    images: ArrayImages
    poisoned: Ints
    rule: TargetRule
    new_model: Callable[[], nn.Module]
    recipe: Recipe
    seed: int
    device: str = "cpu"
    progress: Progress | None = None

    def clean_model(self, epochs: int | None = None) -> nn.Module:
        """A network of the victim's architecture trained on the clean images; on the CPU, in eval mode.

        Args:
            epochs: Instead of the recipe's.
        """
        model = self.new_model()
        recipe = self.recipe if epochs is None else replace(self.recipe, epochs=epochs, warmup_epochs=0.0)
        train(model, self.images, recipe, seed=preparation_seed(self.seed), device=self.device, progress=self.progress)
        return model
