"""The players of DHBE: a student, its teacher, and generators of images and of patches that look for its faults."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.dhbe.nets import ImageGenerator, PatchGenerator, add_patches, total_variation
from clp_plugin.defenses.shared.training import finite, forward
from clp_plugin.networks.devices import device_of, seeded
from clp_plugin.networks.precision import memory_format, resolve

if TYPE_CHECKING:
    from clp_plugin.defenses.dhbe.defense import DHBE

# Of generated images, on which the log's agreement and response are measured.
_JUDGED_BATCHES = 4


class Game:
    """Student, teacher and the two generators, with their optimizers.

    Args:
        options: The options of the training.
        model: The model that becomes the student, in train mode; every parameter of it will be trained.
        budget: Gives the shape and the std of images.
        seed: Seed of the generators' first weights, of the noise and of the patches' places.

    Attributes:
        student: The model that was given.
        teacher: A frozen copy of it, in eval mode.
        generator: The generator of images.
        patcher: The generator of patches.
    """

    def __init__(self, options: DHBE, model: nn.Module, budget: Budget, seed: int) -> None:
        self._options = options
        self._device = device_of(model)
        self._dtype = resolve("auto", self._device)
        self._size = budget.input_shape[1:]
        self._std = torch.tensor(budget.std, device=self._device)
        self._random = torch.Generator().manual_seed(seed)
        layout = memory_format(self._dtype, self._device)
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval().to(memory_format=layout)
        self.student = model.requires_grad_(True).train().to(memory_format=layout)
        with seeded(seed):
            self.generator: nn.Module = ImageGenerator(budget.input_shape, options.latent, options.width)
            self.patcher: nn.Module = PatchGenerator(
                budget.input_shape[0], options.patch, options.latent, options.width
            )
        for network in (self.generator, self.patcher):
            network.to(self._device).to(memory_format=layout)
        self._of_student = torch.optim.SGD(
            self.student.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        self._of_generator = torch.optim.Adam(self.generator.parameters(), lr=options.generator_lr)
        self._of_patcher = torch.optim.Adam(self.patcher.parameters(), lr=options.generator_lr)

    def set_decay(self, factor: float) -> None:
        """All learning rates become ``factor`` times their first value."""
        self._of_student.param_groups[0]["lr"] = factor * self._options.lr
        for optimizer in (self._of_generator, self._of_patcher):
            optimizer.param_groups[0]["lr"] = factor * self._options.generator_lr

    def play(self) -> Tensor:
        """Play a round; return the losses before its steps, ``(3,)``: mean of the student's, generator's, patches'."""
        of_student = [self._step_student() for _ in range(self._options.student_steps)]
        return torch.stack([torch.stack(of_student).mean(), self._step_generator(), self._step_patcher()])

    def images(self) -> Tensor:
        """A batch of new images ``(B, C, H, W)``; gradients reach the generator."""
        return self._made_by(self.generator)

    def patched(self, images: Tensor) -> Tensor:
        """The images under new patches at a new place that they share; gradients reach the patches' generator."""
        height, width = (side - self._options.patch + 1 for side in self._size)
        top = int(torch.randint(height, (), generator=self._random))
        left = int(torch.randint(width, (), generator=self._random))
        return add_patches(images, self._made_by(self.patcher), top, left, self._std)

    def finish(self) -> nn.Module:
        """The student as it is now, in eval mode."""
        self.student.zero_grad(set_to_none=True)
        return self.student.to(memory_format=torch.contiguous_format).eval()

    @torch.no_grad()
    def judge(self) -> dict[str, Any]:
        """How alike student and teacher are, and how much patches move each; the student in eval mode.

        Raises:
            ConfigError: If the student's logits are NaN or infinite.
        """
        agreed, moved = [], []
        for _ in range(_JUDGED_BATCHES):
            images = self.images()
            patched = self.patched(images)
            plain = [forward(network, images) for network in (self.teacher, self.student)]
            under = [forward(network, patched) for network in (self.teacher, self.student)]
            agreed.append((plain[0].argmax(1) == plain[1].argmax(1)).float().mean())
            moved.append(torch.stack([l1(one, other) for one, other in zip(plain, under, strict=True)]))
        before, after = (finite(response, "lower lr") for response in torch.stack(moved).mean(0))
        return {"agreement": float(torch.stack(agreed).mean()), "response": {"before": before, "after": after}}

    def _made_by(self, generator: nn.Module) -> Tensor:
        noise = torch.randn(self._options.batch_size, self._options.latent, generator=self._random).to(self._device)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            made: Tensor = generator(noise)
        return made

    def _step_student(self) -> Tensor:
        with torch.no_grad():
            images = self.images()
            patched = self.patched(images)
            wanted = forward(self.teacher, images)
        loss = student_loss(self._seen_by_student, images, patched, wanted, self._options.lambda_d)
        return _descend(loss, self._of_student)

    def _step_generator(self) -> Tensor:
        images = self.images()
        difference = l1(self._seen_by_student(images), forward(self.teacher, images))
        return _descend(self._options.tv_weight * total_variation(images) - difference, self._of_generator)

    def _step_patcher(self) -> Tensor:
        with torch.no_grad():
            images = self.images()
        change = l1(self._seen_by_student(images), self._seen_by_student(self.patched(images)))
        return _descend(-change, self._of_patcher)

    def _seen_by_student(self, images: Tensor) -> Tensor:
        return forward(self.student, images)


def student_loss(
    student: Callable[[Tensor], Tensor], images: Tensor, patched: Tensor, wanted: Tensor, lambda_d: float
) -> Tensor:
    """The scalar that the student minimises.

    Plain and patched images pass separately, so that BatchNorm in train mode normalizes each by their own statistics.

    Args:
        student: Images to logits ``(B, classes)``.
        images: Plain images, ``(B, C, H, W)``, normalized.
        patched: The same images with patches.
        wanted: The teacher's logits on ``images``.
        lambda_d: Weight of the second term, in which the logits on plain images are constants.
    """
    plain = student(images)
    return l1(plain, wanted) + lambda_d * l1(student(patched), plain.detach())


def l1(one: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference of two tensors of one shape: a scalar."""
    return (one - other).abs().mean()


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Make a step on the optimizer's parameters, and on those alone; return the loss before it."""
    parameters = optimizer.param_groups[0]["params"]
    # loss.backward() would also compute and keep gradients of the other players.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss.detach()
