"""Neural Attention Distillation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.options import is_count, require_in_range
from clp_plugin.defenses.shared.stages import Stage, attention, maps_of, stages
from clp_plugin.defenses.shared.training import Labeled, SGDTraining, benign_images, forward, part_of, train_with_sgd
from clp_plugin.errors import ConfigError
from clp_plugin.networks.devices import device_of
from clp_plugin.networks.precision import memory_format, resolve
from clp_plugin.types import BudgetKind, Progress


@dataclass(frozen=True)
class NAD(SGDTraining):
    """Fine-tune a copy as the teacher; then fine-tune the model so that its attention follows the teacher's.

    Attributes:
        epochs: Passes over the images that train the student.
        lr: Learning rate of the student, after its first epochs.
        warm_lr: Learning rate in the first ``warm_epochs`` epochs of teacher and student.
        warm_epochs: Number of epochs at ``warm_lr``.
        teacher_epochs: Passes over the images that train the teacher.
        teacher_lr: Learning rate of the teacher, after its first epochs.
        betas: Weights of the attention losses of the last stages, from low (large maps) to high, each at least 0. A network
            with fewer stages takes the last of them.
        momentum: Nesterov's momentum, in (0, 1).

    Raises:
        ConfigError: If a value is out of its range, before anything is run.

    Source:
        Li, Lyu, Koren, Lyu, Li, Ma: Neural Attention Distillation, ICLR 2021 (arXiv:2101.05930), section 3; schedule,
        optimizer, betas and the mean of squares as distance as in the authors' code, which also trains the teacher by the
        student's schedule without attention.
        Deviations: no cutout, only crop and flip. The authors use 5 % of the training images, 2,500; CLP (ECCV 2022)
        gives NAD 500. The last epoch is the result; nothing is chosen, so nothing is held out. The stages are found by
        the sizes of their maps (:func:`clp_plugin.defenses.shared.stages.stages`) instead of by the blocks of one architecture,
        and never have maps of a single pixel: normalized attention is 1 there and its loss exactly 0, which is what
        BackdoorBench compares for its ResNets.
    """

    lr: float = 0.01
    batch_size: int = 64
    weight_decay: float = 1e-4
    warm_lr: float = 0.1
    warm_epochs: int = 2
    teacher_epochs: int = 10
    teacher_lr: float = 0.01
    betas: Sequence[float] = (500.0, 1000.0, 1000.0)
    budget: ClassVar[BudgetKind] = "benign"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_range(
            self,
            ("momentum", self.momentum > 0, "above 0 (it is Nesterov's)"),
            ("warm_lr", self.warm_lr > 0, "above 0"),
            ("warm_epochs", is_count(self.warm_epochs, 0), "a whole number of at least 0"),
            (
                "teacher_epochs",
                is_count(self.teacher_epochs, 0),
                "a whole number of at least 0",
            ),
            ("teacher_lr", self.teacher_lr > 0, "above 0"),
            ("betas", _are_weights(self.betas), "a list of numbers of at least 0 such as [500, 1000, 1000]"),
        )

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Find the stages, train the teacher, then the student; ``progress`` counts the epochs of both.

        ``log``: ``stages``; ``teacher_losses`` of each epoch; ``losses`` of each epoch of the student, attention included,
        and ``attention_losses``, that part of them.

        Raises:
            ConfigError: If there are fewer than two benign images or no maps larger than a pixel, or a training diverges.
        """
        data = benign_images(budget, model)
        chosen = stages(model, data.images[:1])[-len(self.betas) :]
        if not chosen:
            raise ConfigError(
                "nad compares feature maps larger than one pixel, and this network has none at "
                f"{budget.input_shape[1]}x{budget.input_shape[2]} pixels; use ft or fp"
            )
        weights = dict(zip(chosen, self.betas[-len(chosen) :], strict=True))
        total = self.teacher_epochs + self.epochs
        teacher = copy.deepcopy(model)
        as_teacher = replace(self, epochs=self.teacher_epochs, lr=self.teacher_lr)
        # Another seed: the two would otherwise see the same batches in the same order.
        teacher_losses = as_teacher._train(teacher, data, seed + 1, part_of(progress, 0, total))
        seen: list[Tensor] = []
        with _distilling(model, teacher, weights, seen) as loss_of:
            losses = self._train(model, data, seed, part_of(progress, self.teacher_epochs, total), loss_of)
        log = {
            "stages": [str(stage) for stage in chosen],
            "teacher_losses": teacher_losses,
            "losses": losses,
            # Every epoch has as many batches as any other.
            "attention_losses": torch.stack(seen).view(self.epochs, -1).mean(1).tolist() if seen else [],
        }
        return Repaired(model, log=log)

    def _train(
        self,
        model: nn.Module,
        data: Labeled,
        seed: int,
        progress: Progress | None,
        loss_of: Callable[[Labeled], Tensor] | None = None,
    ) -> list[float]:
        return train_with_sgd(
            model,
            data,
            self,
            seed=seed,
            progress=progress,
            loss_of=loss_of,
            nesterov=True,
            lr_of_epoch=lambda epoch: self.warm_lr if epoch < self.warm_epochs else self.lr,
        )


def attention_loss(
    students: Mapping[Stage, Tensor], teachers: Mapping[Stage, Tensor], weights: Mapping[Stage, float]
) -> Tensor:
    """How far the student's attention is from the teacher's.

    Args:
        students: The student's maps of each stage, ``(B, C, H, W)``; any number of channels.
        teachers: The teacher's maps of each stage, of the same images.
        weights: Weight of each stage, at least 0; at least one stage.

    Returns:
        Sum over stages of weight times the mean, over images and positions, of the squared difference of attention.
    """
    parts = [
        weight * F.mse_loss(attention(students[stage]), attention(teachers[stage])) for stage, weight in weights.items()
    ]
    return torch.stack(parts).sum()


@contextlib.contextmanager
def _distilling(
    student: nn.Module, teacher: nn.Module, weights: Mapping[Stage, float], seen: list[Tensor]
) -> Iterator[Callable[[Labeled], Tensor]]:
    """Inside, the student's loss on a batch; its attention's part is added to ``seen``. The teacher is frozen."""
    device = device_of(teacher)
    teacher.to(memory_format=memory_format(resolve("auto", device), device)).requires_grad_(False).eval()
    with maps_of(student, list(weights)) as students, maps_of(teacher, list(weights)) as teachers:

        def loss_of(batch: Labeled) -> Tensor:
            loss = F.cross_entropy(forward(student, batch.images), batch.labels)
            with torch.no_grad():
                forward(teacher, batch.images)
            # Not in the hooks: an activation in place may still change the maps after them.
            distance = attention_loss(students, teachers, weights)
            seen.append(distance.detach())
            return loss + distance

        yield loss_of


def _are_weights(betas: object) -> bool:
    return (
        isinstance(betas, (tuple, list))
        and len(betas) > 0
        and all(isinstance(beta, (int, float)) and beta >= 0 for beta in betas)
    )
