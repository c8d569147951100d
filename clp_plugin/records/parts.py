"""A record made of parts: any network, any images, any trigger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import PickedImages, Pixels, PixelSource
from clp_plugin.types import Ints, Provenance, Record, TargetRule, TriggeredSet

if TYPE_CHECKING:
    from torch import nn

TOOLBOX = "parts"


@dataclass(frozen=True, eq=False)
class Triggered:
    """Images that carry the trigger already.

    Attributes:
        pixels: ``(M, C, H, W)`` uint8, an array or files.
        clean_index: ``(M,)`` int64, position among all images of the clean image that each was made from.
    """

    pixels: PixelSource
    clean_index: Ints


def record_from(
    model: nn.Module,
    pixels: PixelSource,
    labels: Ints,
    *,
    trigger: Callable[[Pixels], Pixels] | Triggered,
    target: int | str,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    test: Ints | None = None,
    benign: Ints | None = None,
    provenance: Provenance | None = None,
) -> Record:
    """A record that every function of this package takes, made of what somebody has at hand.

    Args:
        model: The attacked network; takes normalized images ``(B, C, H, W)``. Set to eval mode, else left alone.
        pixels: Images ``(N, C, H, W)`` uint8, an array or anything that gives the images at an array of positions.
        labels: True labels, ``(N,)`` whole numbers from 0.
        trigger: Returns triggered copies of images ``(B, C, H, W)`` uint8, as a
            :class:`~clp_plugin.records.triggers.Trigger` does; or the images that are triggered already.
        target: The class that the attacker wants; ``"all"`` for y to y + 1, ``"all+2"`` for y to y + 2.
        num_classes: Number of classes; that of the model's outputs if None.
        mean: Mean of the normalization, per channel, on the [0, 1] scale; 0 if None.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale, positive; 1 if None.
        test: Positions of the test images; all that are not ``benign`` if None.
        benign: Positions of the images that a defense may see; none if None.
        provenance: Facts on where the model and images come from; by default a hash of the weights and the model's
            class.

    Raises:
        ConfigError: If the target, mean or std do not fit, or an image is to be both benign and for test.
        RecordError: If images and labels do not fit each other or the classes, or no triggered image counts for ASR.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from clp_plugin import evaluate, record_from
        >>> from clp_plugin.records.triggers import Trigger
        >>> images = np.zeros((6, 3, 8, 8), dtype=np.uint8)
        >>> white = Trigger.patch(np.full((1, 2, 2), 255.0), shape=(3, 8, 8), at="bottom-right")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
        >>> record = record_from(model, images, np.arange(6) % 4, trigger=white, target=0)
        >>> evaluate(record.model, record).n_triggered  # the two images of class 0 do not count
        4
    """
    labels = _whole_numbers(labels)
    chosen = _positions(labels, test, benign)
    shape = _shape(pixels, chosen[0])
    scale = normalization(mean, std, shape[0])
    model = model.eval()
    rule = TargetRule.parse(str(target), num_classes or classes_of(model, shape))
    if not (labels.min() >= 0 and labels.max() < rule.num_classes):
        raise RecordError(f"labels: expected 0 to {rule.num_classes - 1}, found {labels.min()} to {labels.max()}")
    clean, budget = (PickedImages(pixels, labels[part], *scale, part) for part in chosen)
    twins = _triggered(clean, trigger, rule)
    if not len(twins.clean_index):
        raise RecordError(
            f"no triggered image counts for ASR: expected test images of another class than {rule} with triggered twins"
        )
    origin = provenance or Provenance(
        TOOLBOX, "", weights_hash(model), "trigger", "images", type(model).__name__, float("nan"), 0, *scale
    )
    return Record(
        model=model,
        input_shape=shape,
        clean=clean,
        triggered=twins,
        target=rule,
        benign=budget,
        provenance=replace(origin, mean=scale[0], std=scale[1]),
    )


def classes_of(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """How many classes a network tells apart, by what it returns for one black image ``(C, H, W)``.

    Raises:
        RecordError: If the network does not take such an image.
    """
    import torch

    from clp_plugin.networks.outputs import logits_of

    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    try:
        with torch.inference_mode():
            return int(logits_of(model(torch.zeros((1, *shape), dtype=dtype))).shape[1])
    except Exception as error:  # a network's own code may fail in any way
        raise RecordError(
            f"the network does not take images of {shape}: {type(error).__name__}: {' '.join(str(error).split())}; are size "
            "and channels those that it was trained with?"
        ) from error


def weights_hash(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of a network's weights and buffers, by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _WithTrigger:
    """Puts the trigger on when images are asked for."""

    pixels: PixelSource
    trigger: Callable[[Pixels], Pixels]

    def __getitem__(self, positions: Ints) -> Pixels:
        clean = self.pixels[positions]
        triggered = self.trigger(clean)
        if triggered.shape != clean.shape or triggered.dtype != np.uint8:
            raise RecordError(
                f"the trigger: expected images like those it was given, {clean.shape} uint8, found {triggered.shape} "
                f"{triggered.dtype}"
            )
        return triggered


def _triggered(clean: PickedImages, trigger: Callable[[Pixels], Pixels] | Triggered, rule: TargetRule) -> TriggeredSet:
    """The triggered twins of those test images that count for ASR."""
    if not isinstance(trigger, Triggered):
        twins = np.flatnonzero(rule.counted(clean.labels))
        stamped = replace(clean.take(twins), pixels=_WithTrigger(clean.pixels, trigger))
        return TriggeredSet(stamped, twins)
    position_of = {int(image): position for position, image in enumerate(clean.positions)}
    pairs = [
        (own, position_of[int(image)]) for own, image in enumerate(trigger.clean_index) if int(image) in position_of
    ]
    own, twins = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    counted = rule.counted(clean.labels[twins])
    own, twins = own[counted], twins[counted]
    return TriggeredSet(PickedImages(trigger.pixels, clean.labels[twins], clean.mean, clean.std, own), twins)


def _whole_numbers(labels: Ints) -> Ints:
    found = np.asarray(labels)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise RecordError(f"labels: expected (N,) whole numbers, found {found.shape} {found.dtype}")
    return found.astype(np.int64)


def _positions(labels: Ints, test: Ints | None, benign: Ints | None) -> tuple[Ints, Ints]:
    """Positions of the test images and of the benign budget."""
    budget = np.zeros(0, dtype=np.int64) if benign is None else np.asarray(benign, dtype=np.int64)
    tests = np.setdiff1d(np.arange(len(labels)), budget) if test is None else np.asarray(test, dtype=np.int64)
    if both := set(tests.tolist()) & set(budget.tolist()):
        raise ConfigError(
            f"{len(both)} images are for test and in the benign budget, the first at position {min(both)}"
        )
    if not len(tests):
        raise ConfigError(f"no test image is left of {len(labels)}; give fewer to the benign budget")
    return tests, budget


def _shape(pixels: PixelSource, test: Ints) -> tuple[int, int, int]:
    first = pixels[test[:1]]
    if first.ndim != 4 or first.dtype != np.uint8:
        raise RecordError(f"images: expected (N, C, H, W) uint8, found {first.shape} {first.dtype}")
    channels, height, width = first.shape[1:]
    return channels, height, width


def normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation with a number for each channel.

    Args:
        mean: One number, or one a channel, on the [0, 1] scale; 0 if None.
        std: One positive number, or one a channel, on the [0, 1] scale; 1 if None.
        channels: Number of channels.

    Raises:
        ConfigError: If they do not fit.
    """
    means, stds = _per_channel(mean, 0.0, channels), _per_channel(std, 1.0, channels)
    if min(stds) <= 0:
        raise ConfigError(f"std: expected positive numbers, found {stds}")
    return means, stds


def _per_channel(given: Sequence[float] | None, usual: float, channels: int) -> tuple[float, ...]:
    values = (usual,) if given is None else tuple(float(value) for value in given)
    if len(values) not in (1, channels) or not np.isfinite(values).all():
        raise ConfigError(f"mean and std: expected 1 or {channels} finite numbers, found {values}")
    return values * channels if len(values) == 1 else values
