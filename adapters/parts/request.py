"""What a record is to be made of, as its owner says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class PartsRequest:
    """The parts that a record is to be made of.

    Attributes:
        checkpoint: The file of weights.
        images: Clean images, as :func:`~clp_plugin.adapters.image_sets.stored_images.read_labelled` takes them.
        target: A class number, ``all`` or ``all+SHIFT``; None where the toolbox's files tell.
        trigger: The picture of the trigger; None with ``triggered``.
        trigger_mask: Picture of how much of the trigger's picture covers.
        at: Name of a corner, or ``"X,Y"``.
        blend: Share of the picture in a blend; None for a patch.
        add: Whether the picture is added.
        triggered: Images that carry the trigger already.
        arch: The architecture; None for a whole pickled network.
        arch_options: The options that the architecture is built with.
        key: Dotted path to the weights within the file.
        strict: Take the stored keys as they are.
        num_classes: Number of classes; read off the weights if None.
        labels: File of the images' labels, where it is one of its own.
        input_shape: ``(C, H, W)``; that of the images if None, or the network's usual one where they differ in size.
        mean: Mean of the normalization, per channel, on the [0, 1] scale; 0 if None.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale; 1 if None.
        n_test: Number of test images; None for all that are left.
        n_benign: Number of images that a defense may see.
        seed: Seed by which test and benign images are drawn.
        copy: Whether the record keeps copies of all parts.
        attack: The attack's name, for tables.
        dataset: The data set's name, for tables.
        poison_rate: Share of the training images that was poisoned.
        trust: Allow pickles that run code.
    """

    checkpoint: Path
    images: Path
    target: str | None = None
    trigger: Path | None = None
    trigger_mask: Path | None = None
    at: str | None = None
    blend: float | None = None
    add: bool = False
    triggered: Path | None = None
    arch: str | None = None
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    strict: bool = False
    num_classes: int | None = None
    labels: Path | None = None
    input_shape: Shape | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    n_test: int | None = None
    n_benign: int = 0
    seed: int = 0
    copy: bool = False
    attack: str | None = None
    dataset: str | None = None
    poison_rate: float | None = None
    trust: bool = False
