"""One training run, batch by batch; its state at any batch is small and complete."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages, augment
from clp_plugin.networks.precision import memory_format, resolve

from ..randomness import Stream, torch_generator
from .hooks import Batch, BatchHook
from .recipe import Recipe


class Run:
    """The model, its data on the device, and where the training stands: ``batch`` batches of ``epoch`` are done."""

    def __init__(
        self,
        model: nn.Module,
        images: ArrayImages,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        hook: BatchHook,
    ) -> None:
        self.recipe, self.seed, self.device, self.hook = recipe, seed, device, hook
        self.dtype = resolve(recipe.precision, device)
        self.layout = memory_format(self.dtype, device)
        self.model = model.to(device).to(memory_format=self.layout).train()
        self.pixels = torch.from_numpy(images.pixels).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)
        self.mean = torch.tensor(images.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(images.std, device=device).view(1, -1, 1, 1)
        self.batch_size = min(recipe.batch_size, len(images))
        self.steps = len(images) // self.batch_size
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self.data = hashlib.sha256(images.pixels.tobytes() + images.labels.tobytes()).hexdigest()
        self.epoch, self.batch, self.loss_sum = 0, 0, torch.zeros(())
        self.open_epoch()

    def open_epoch(self) -> None:
        """Draw the order of the images; it depends on seed and epoch only, so that a resumed run draws it again."""
        self.generator = torch_generator(self.seed, Stream.TRAINING, self.epoch)
        self.order = torch.randperm(len(self.labels), generator=self.generator)

    def step(self) -> None:
        """Train on one batch."""
        start = self.batch * self.batch_size
        indices = self.order[start : start + self.batch_size]
        on_device = indices.to(self.device)
        images = augment(
            self.pixels[on_device], self.generator, padding=self.recipe.crop_padding, flip=self.recipe.flip
        )
        batch = self.hook(Batch(images, self.labels[on_device]), indices, self.generator)
        inputs = batch.images.to(torch.float32).div(255.0).sub(self.mean).div(self.std)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.epoch + self.batch / self.steps)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(inputs.contiguous(memory_format=self.layout))
        loss = F.cross_entropy(logits.float(), batch.labels)
        if batch.penalty is not None:
            loss = loss + batch.penalty
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.hook.step(self.epochs_done / self.recipe.epochs)
        # Summed on the device: reading each loss would make a GPU wait.
        self.loss_sum = self.loss_sum.to(self.device) + loss.detach()
        self.batch += 1

    def close_epoch(self) -> None:
        """Go on to the next epoch if this one is done."""
        if self.batch == self.steps:
            self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, torch.zeros(())
            self.open_epoch()

    @property
    def loss(self) -> float:
        """Mean over the batches of this epoch so far."""
        return float(self.loss_sum) / max(self.batch, 1)

    @property
    def epochs_done(self) -> float:
        """Passes over the images that are done, with a fraction for a pass in progress."""
        return self.epoch + self.batch / self.steps

    def check_loss(self) -> None:
        """Refuse to go on with a loss that is no number.

        Raises:
            ConfigError: If the last loss is NaN or infinite.
        """
        if not math.isfinite(self.loss):
            raise ConfigError(
                f"training diverged: the loss is {self.loss} in epoch {self.epoch + 1} of {self.recipe.epochs}; "
                f"lower the learning rate (lr={self.recipe.lr}) or give warmup_epochs"
            )

    def check_weights(self) -> None:
        """Refuse weights that are no numbers.

        Raises:
            ConfigError: If one is NaN or infinite; names its tensor.
        """
        for name, tensor in self.model.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ConfigError(f"training diverged: {name} holds NaN or infinity; lower the learning rate")

    def identity(self) -> dict[str, Any]:
        """The facts that must agree for a checkpoint to belong to this run."""
        return {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": self.data,
            "dtype": str(self.dtype),
            "shapes": {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()},
        }

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs: tensors and plain containers."""
        return {
            "identity": self.identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hook": self.hook.state(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": float(self.loss_sum),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where :meth:`state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hook.restore(state["hook"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.open_epoch()
        self.generator.set_state(state["generator"])
        self.loss_sum = torch.tensor(state["loss_sum"])


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate at a point of the schedule; ``epoch`` counts from 0, with a fraction."""
    if epoch < recipe.warmup_epochs:
        # A step of the ramp is never 0: the first batch would be wasted.
        return recipe.lr * max(epoch / recipe.warmup_epochs, 1e-3)
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
