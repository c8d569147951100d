"""Data-free Holistic Backdoor Erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.dhbe.game import Game
from clp_plugin.defenses.shared.options import is_count, require_in_range
from clp_plugin.defenses.shared.training import finite
from clp_plugin.errors import ConfigError
from clp_plugin.types import BudgetKind, Progress

# Learning rates fall to a tenth after each of these percentages of the iterations.
_MILESTONES = (60, 80)
_LOG_POINTS = 10
_LOSSES = ("student", "generator", "patches")


@dataclass(frozen=True)
class DHBE:
    """Distil the attacked model into a copy of itself on generated images, taught to ignore generated patches.

    The student is pulled to the teacher's logits on images of a generator that looks for images where they differ, and
    its logits on patched images to its own on the plain ones, under patches of a generator that looks for patches that
    change them. The last student is kept: nothing is chosen.

    Attributes:
        iterations: Rounds of ``student_steps`` steps of the student and one of each generator.
        student_steps: Steps of the student a round.
        batch_size: Generated images a step.
        lr: Learning rate of the student's SGD. All three rates fall to a tenth at 60 % and again at 80 % of the
            iterations.
        momentum: Momentum of the student's SGD, in [0, 1).
        weight_decay: L2 penalty, on all of the student's parameters.
        generator_lr: Learning rate of the generators' Adam.
        latent: Length of the noise that both generators start from.
        width: Channels of both generators.
        patch: Side of the patches in pixels: a guess of the largest trigger.
        lambda_d: Weight of the student's loss on patched images.
        tv_weight: Weight of the images' total variation, which grows with the square root of ``batch_size``.

    Raises:
        ConfigError: If a value is out of its range, before anything is run.

    Source:
        Yan, Li, Zhao, Tian, Zhao: DHBE: Data-free Holistic Backdoor Erasing in Deep Neural Networks via Restricted
        Adversarial Distillation, AsiaCCS 2023 (arXiv:2306.08009), with the numbers of its public code: 300 epochs of 50
        rounds.
        Ours: noise is drawn anew for every step; the image prior that the public code gives weight 0 is left out; and
        all networks compute in bfloat16 where the device is made for it.
    """

    iterations: int = 15_000
    student_steps: int = 5
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    generator_lr: float = 1e-3
    latent: int = 256
    width: int = 64
    patch: int = 5
    lambda_d: float = 0.1
    tv_weight: float = 1e-4
    budget: ClassVar[BudgetKind] = "none"

    def __post_init__(self) -> None:
        require_in_range(
            self,
            ("iterations", is_count(self.iterations, 0), "a whole number, at least 0"),
            ("batch_size", is_count(self.batch_size, 2), "a whole number, at least 2"),
            *(
                (name, is_count(getattr(self, name), 1), "a whole number, at least 1")
                for name in ("student_steps", "latent", "width", "patch")
            ),
            *((name, 0 < getattr(self, name) < math.inf, "above 0") for name in ("lr", "generator_lr")),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            *(
                (name, 0 <= getattr(self, name) < math.inf, "at least 0")
                for name in ("weight_decay", "lambda_d", "tv_weight")
            ),
        )

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Train all weights of ``model`` against a frozen copy; reads the budget's image size and std and no image.

        The log: ``losses``, means over up to ten equal stretches; ``agreement``, share of generated images which student
        and teacher give the same class; ``response``, mean absolute change of a logit under the generated patches, of
        the teacher (``before``) and of the student (``after``). Both are measured at the end, in eval mode, with the
        generators as they are then; patches made for the student need not be the teacher's worst.

        Raises:
            ConfigError: If the images are smaller than a patch or than 2 pixels, the std does not fit them, or a loss
                becomes NaN or infinite.
        """
        _check(budget, self.patch)
        game = Game(self, model, budget, seed)
        seen = []
        for done in range(self.iterations):
            game.set_decay(0.1 ** sum(100 * done >= percent * self.iterations for percent in _MILESTONES))
            losses = game.play()
            finite(losses.sum(), "lower lr")
            seen.append(losses)
            if progress is not None:
                progress(done + 1, self.iterations)
        return Repaired(game.finish(), log={"losses": _summary(seen), **game.judge()})


def _summary(seen: list[Tensor]) -> dict[str, list[float]]:
    """Mean of each loss over up to ten equal stretches of the rounds."""
    if not seen:
        return {name: [] for name in _LOSSES}
    stretches = torch.stack(seen).cpu().tensor_split(min(_LOG_POINTS, len(seen)))
    means = torch.stack([stretch.mean(0) for stretch in stretches])
    return {name: means[:, column].tolist() for column, name in enumerate(_LOSSES)}


def _check(budget: Budget, patch: int) -> None:
    channels, *size = budget.input_shape
    if min(size) < max(patch, 2):
        raise ConfigError(f"dhbe: patches of {patch}x{patch} pixels do not fit images of {size[0]}x{size[1]}")
    if len(budget.std) != channels:
        raise ConfigError(f"dhbe: images have {channels} channels, but std has {len(budget.std)} values: {budget.std}")
