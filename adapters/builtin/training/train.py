"""Train a classifier on images in memory: seeded, with time left, and going on after a kill where it stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from clp_plugin.errors import CheckpointError, ConfigError, RecordError
from clp_plugin.files.atomic import write_atomically
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.images import ArrayImages

from .hooks import BatchHook
from .recipe import Recipe
from .run import Run

_REPORT_SECONDS = 0.5


class Progress(Protocol):
    """Told about the training a few times a second and after each epoch."""

    def __call__(self, epoch: float, epochs: int, loss: float, seconds_left: float, /) -> None:
        """Args: epochs done, with a fraction; epochs in all; mean loss of this epoch so far; estimated seconds left."""
        ...


def train(
    model: nn.Module,
    images: ArrayImages,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    hook: BatchHook | None = None,
) -> None:
    """Train ``model`` in place; it ends on the CPU, in eval mode, contiguous, in float32.

    A run that was killed and is started again with the same arguments ends with the very weights that an uninterrupted
    one would have, as far as the device computes deterministically.

    Args:
        model: The network with its initial weights; takes normalized images.
        images: ``(N, C, H, W)`` uint8 with the labels to learn.
        recipe: The schedule of the training.
        seed: Seed of the order of the images and their augmentation.
        device: The device to train on.
        progress: Called with the state of the run.
        checkpoint: File to keep the state in, and to go on from where it exists. The finished state stays there, so
            that nothing is lost before the caller has stored the model: the caller deletes it.
        checkpoint_seconds: Shortest time between two writes of it.
        hook: Changes each batch after its augmentation.

    Raises:
        ConfigError: If the loss becomes NaN or infinite, or there are fewer than 2 images.
        RecordError: If the checkpoint cannot be read or belongs to another run.
    """
    if len(images) < 2:
        raise ConfigError(f"training: expected at least 2 images, found {len(images)}")
    run = Run(model, images, recipe, seed, torch.device(device), hook or BatchHook())
    checkpointer = _Checkpointer(run, checkpoint, checkpoint_seconds)
    checkpointer.restore()
    reporter = _Reporter(run, progress)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while run.epoch < recipe.epochs:
            run.step()
            keep = checkpointer.due()
            if keep or reporter.due():
                run.check_loss()
                reporter.report()
            run.close_epoch()
            if keep:
                checkpointer.save()
    run.check_weights()
    checkpointer.save()
    model.to("cpu").to(memory_format=torch.contiguous_format).eval()


class _Reporter:
    """Tells how far the run is, and estimates the rest from the steps of this process."""

    def __init__(self, run: Run, progress: Progress | None) -> None:
        self.run, self.progress = run, progress
        self.start, self.start_epoch = time.monotonic(), run.epochs_done
        self.last = self.start

    def due(self) -> bool:
        return self.run.batch == self.run.steps or time.monotonic() - self.last >= _REPORT_SECONDS

    def report(self) -> None:
        if self.progress is None or not self.due():
            return
        self.last = time.monotonic()
        done = self.run.epochs_done - self.start_epoch
        left = (self.run.recipe.epochs - self.run.epochs_done) * (self.last - self.start) / done
        self.progress(self.run.epochs_done, self.run.recipe.epochs, self.run.loss, left)


class _Checkpointer:
    """Writes and reads the state of a run."""

    def __init__(self, run: Run, path: Path | None, seconds: float) -> None:
        self.run, self.path, self.seconds = run, path, seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self.last >= self.seconds

    def save(self) -> None:
        if self.path is None:
            return
        state = self.run.state()
        write_atomically(self.path, lambda file: torch.save(state, file))
        self.last = time.monotonic()

    def restore(self) -> None:
        if self.path is None or not self.path.exists():
            return
        advice = f"delete {self.path} to start this training anew"
        try:
            state: Any = read_pickle_checkpoint(self.path)
            found = dict(state["identity"])
        except (CheckpointError, LookupError, TypeError, ValueError) as error:
            raise RecordError(f"{self.path}: not a readable training state ({error}); {advice}") from error
        wanted = self.run.identity()
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            raise RecordError(f"{self.path}: belongs to a training with other {', '.join(differing)}; {advice}")
        self.run.restore(state)
