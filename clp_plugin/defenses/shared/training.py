"""The common part of the defenses that train: their images on the device, batches, plain SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.shared.options import is_count, require_in_range
from clp_plugin.errors import ConfigError
from clp_plugin.images import augment
from clp_plugin.networks.devices import device_of
from clp_plugin.networks.outputs import logits_of
from clp_plugin.networks.precision import memory_format, resolve
from clp_plugin.types import ImageSet, Progress

_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Labeled:
    """Images in memory.

    Attributes:
        images: ``(N, C, H, W)`` float32, normalized, on the device to work on.
        labels: ``(N,)`` int64, on the same device.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Labeled:
        """The images at these positions, ``(M,)`` int64 on any device."""
        index = index.to(self.labels.device)
        return Labeled(self.images[index], self.labels[index])


@dataclass(frozen=True)
class SGDTraining:
    """Options of a defense that trains with SGD on its benign images.

    Attributes:
        epochs: Passes over the images.
        lr: Learning rate, constant.
        batch_size: Images a step; at most all.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: L2 penalty, on all parameters.
        crop_padding: Random shift by up to so many pixels, padded with the data set's mean colour.
        flip: Mirror half of the images left to right.

    Raises:
        ConfigError: If a value is out of its range, before anything is run.
    """

    epochs: int = 20
    lr: float = 0.005
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        require_in_range(
            self,
            ("epochs", is_count(self.epochs, 0), "a whole number of at least 0"),
            ("lr", self.lr > 0, "above 0"),
            ("batch_size", is_count(self.batch_size, 2), "at least 2 (BatchNorm needs several)"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("crop_padding", is_count(self.crop_padding, 0), "a whole number of at least 0"),
        )


def part_of(progress: Progress | None, start: int, total: int) -> Progress | None:
    """The progress that one of several trainings in a row reports to.

    Args:
        progress: Called with units done and units in all, over all of them.
        start: Units that lie before this one.
        total: Units in all.
    """
    return None if progress is None else lambda done, _: progress(start + done, total)


def benign_images(budget: Budget, model: nn.Module) -> Labeled:
    """The benign images of a budget, on the model's device.

    Raises:
        ConfigError: If there are fewer than two, which no BatchNorm can be trained on.
    """
    if budget.benign is None or len(budget.benign) < 2:
        found = 0 if budget.benign is None else len(budget.benign)
        raise ConfigError(f"expected at least 2 benign images, found {found}; give more with --n-budget")
    return loaded(budget.benign, model)


def loaded(images: ImageSet, model: nn.Module) -> Labeled:
    """All images of a set on the model's device."""
    device = device_of(model)
    pixels = torch.cat(list(images.batches(_EVALUATION_BATCH)))
    return Labeled(pixels.to(device), torch.from_numpy(np.asarray(images.labels)).to(device))


def hold_out(data: Labeled, share: float, seed: int) -> tuple[Labeled, Labeled]:
    """Split into a part to work with and a held-out part to choose by; of each class with two images or more some are in both.

    Args:
        data: The labelled images to split, at least 2.
        share: Share of each class that is held out, in (0, 1), rounded, but at least one and not all of a class with
            several images; at least one image in all.
        seed: Seed of the choice.

    Returns:
        The larger part, the held-out part.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels.cpu()[order]
    held = torch.zeros(len(data), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        held[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    if not held.any():
        held[0] = True
    return data.take(order[~held]), data.take(order[held])


def minibatches(
    data: Labeled, batch_size: int, generator: torch.Generator, *, crop_padding: int = 0, flip: bool = False
) -> Iterator[Labeled]:
    """Batches of a pass in random order, augmented. A last single image is left out: BatchNorm cannot train on it."""
    order = torch.randperm(len(data), generator=generator)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        if len(index) < 2:
            return
        batch = data.take(index)
        yield Labeled(augment(batch.images, generator, padding=crop_padding, flip=flip), batch.labels)


def forward(model: Callable[[Tensor], object], images: Tensor) -> Tensor:
    """Logits in float32, computed in bfloat16 where the device is made for it, as the attacked models are trained.

    A model may return more than its logits, such as those of auxiliary heads in train mode.
    """
    dtype = resolve("auto", images.device)
    layout = memory_format(dtype, images.device)
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = model(images.contiguous(memory_format=layout))
    return logits_of(output).float()


def train_with_sgd(
    model: nn.Module,
    data: Labeled,
    how: SGDTraining,
    *,
    seed: int,
    progress: Progress | None = None,
    loss_of: Callable[[Labeled], Tensor] | None = None,
    after_step: Callable[[], object] | None = None,
    nesterov: bool = False,
    lr_of_epoch: Callable[[int], float] | None = None,
) -> list[float]:
    """Train all parameters of ``model`` in place; it ends in eval mode.

    Args:
        model: The model to train, on the device of ``data``.
        data: The labelled images to train on.
        how: The options of the training.
        seed: Seed of the order and the augmentation.
        progress: Called with epochs done and epochs in all.
        loss_of: Loss of a batch; cross-entropy of the model if None.
        after_step: Called after each step, for example to keep pruned channels silent.
        nesterov: Whether the momentum is Nesterov's.
        lr_of_epoch: Learning rate of an epoch, counted from 0, instead of ``how.lr``.

    Returns:
        Mean loss of each epoch.

    Raises:
        ConfigError: If the loss becomes NaN or infinite.
    """
    loss_of = loss_of or (lambda batch: F.cross_entropy(forward(model, batch.images), batch.labels))
    model.to(memory_format=memory_format(resolve("auto", data.images.device), data.images.device)).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay, nesterov=nesterov
    )
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for epoch in range(how.epochs):
        if lr_of_epoch is not None:
            optimizer.param_groups[0]["lr"] = lr_of_epoch(epoch)
        seen = []
        for batch in minibatches(data, how.batch_size, generator, crop_padding=how.crop_padding, flip=how.flip):
            loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
            seen.append(loss.detach())
        losses.append(finite(torch.stack(seen).mean(), "lower lr"))
        if progress is not None:
            progress(epoch + 1, how.epochs)
    model.to(memory_format=torch.contiguous_format).eval()
    return losses


def finite(loss: Tensor, remedy: str) -> float:
    """A loss as a number.

    Raises:
        ConfigError: If it is NaN or infinite; tells the remedy.
    """
    value = float(loss)
    if not np.isfinite(value):
        raise ConfigError(f"the defense diverged: its loss is {value}; {remedy}")
    return value


def accuracy(model: nn.Module, data: Labeled) -> float:
    """Share of images classified as their label, in eval mode, float32; the model's mode is as before."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in zip(
                data.images.split(_EVALUATION_BATCH), data.labels.split(_EVALUATION_BATCH), strict=True
            )
        )
    model.train(training)
    return right / len(data)
