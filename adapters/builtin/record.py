"""Opens what ``bench attack`` stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clp_plugin.errors import CheckpointError, RecordError
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.files.hashing import sha256
from clp_plugin.images import ArrayImages
from clp_plugin.networks.fitting import fit_state_dict
from clp_plugin.records.adapter import BorrowsImages, ReadsNetworks, ReadsRecords
from clp_plugin.records.exchange import RecordedNetwork, RecordListing
from clp_plugin.types import Ints, Provenance, Record, TriggeredSet

from .borrowed_images import borrowed_images
from .models.build import build
from .record_files import (
    BORROWED,
    DESCRIPTION,
    IMAGES,
    TOOLBOX,
    UNFINISHED,
    WEIGHTS,
    Description,
    borrows,
    read_description,
    read_images,
    require_files,
)


class BuiltinAdapter(ReadsRecords, BorrowsImages, ReadsNetworks):
    """Reads the built-in bench's records.

    Args:
        data: Where the data set lies that records without images borrow them of; the configured place if None.
    """

    def __init__(self, data: Path | None = None) -> None:
        self._data = data

    def sniff(self, path: Path) -> bool:
        # One of the others is enough, so that a record that lost a file gets a message that says which.
        ours = (path / DESCRIPTION).is_file() and any((path / name).is_file() for name in (WEIGHTS, IMAGES, BORROWED))
        return ours or (path / UNFINISHED).is_file()

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record; ``trust`` makes no difference, as nothing here is pickled."""
        del trust
        description = read_description(path)
        require_files(path)
        model = _load_model(path, description)
        images = (
            borrowed_images(path, description, data=self._data) if borrows(path) else read_images(path, description)
        )
        clean_labels = images.clean_labels

        def image_set(pixels: NDArray[np.uint8], labels: Ints) -> ArrayImages:
            return ArrayImages(pixels, labels, description.mean, description.std)

        return Record(
            model=model,
            input_shape=description.input_shape,
            clean=image_set(images.clean_pixels, clean_labels),
            triggered=TriggeredSet(
                image_set(images.triggered_pixels, clean_labels[images.clean_index]), images.clean_index
            ),
            target=description.target,
            benign=image_set(images.benign_pixels, images.benign_labels),
            poisoned_training=image_set(images.training_pixels, images.training_labels)
            if len(images.training_pixels)
            else None,
            provenance=_provenance(path, description),
        )

    def borrows(self, path: Path) -> bool:
        return borrows(path)

    def borrowing_from(self, data: Path) -> BuiltinAdapter:
        return type(self)(data)

    def open_network(self, path: Path, *, trust: bool = False) -> RecordedNetwork:
        """The network alone; ``trust`` makes no difference, as nothing here is pickled."""
        del trust
        description = read_description(path)
        require_files(path)
        return RecordedNetwork(_load_model(path, description), description.input_shape, _provenance(path, description))

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("[!.]*") if child.is_dir() and self.sniff(child)):
            try:
                found = read_description(path)
                require_files(path)
            except RecordError as error:
                yield RecordListing(path, str(error), complete=False)
                continue
            summary = f"{found.attack} ({found.target}), {found.dataset}, {found.architecture}, seed {found.seed}"
            yield RecordListing(path, summary, complete=True)


def _load_model(path: Path, description: Description) -> nn.Module:
    file = path / WEIGHTS
    found = sha256(file)
    if found != description.sha256:
        raise CheckpointError(
            f"{file}: expected SHA-256 {description.sha256[:16]}... as record.json says, found {found[:16]}...; "
            "the weights were changed or damaged after the attack"
        )
    toolbox, _, name = description.architecture.partition(":")
    if toolbox != TOOLBOX:
        raise RecordError(
            f"{path / DESCRIPTION}: expected an architecture builtin:NAME, found {description.architecture!r}"
        )
    options = {"num_classes": description.target.num_classes, **description.architecture_options}
    _require_held(file, name, options)
    model = build(name, **options)
    fit_state_dict(model, load_checkpoint(file), where=f"{file} as {description.architecture}")
    return model.eval()


def _require_held(file: Path, name: str, options: dict[str, Any]) -> None:
    """A description may not ask for a network that is larger than the file of its weights: each number takes a byte at least.

    Raises:
        CheckpointError: If it does.
    """
    try:
        with torch.device("meta"):
            numbers = sum(tensor.numel() for tensor in build(name, **options).state_dict().values())
    except RuntimeError as error:  # more numbers than an integer counts
        raise CheckpointError(f"{file}: {DESCRIPTION} asks for a network that cannot be: {error}") from error
    if numbers > file.stat().st_size:
        raise CheckpointError(
            f"{file}: {DESCRIPTION} asks for a network of {numbers} numbers, and the file has {file.stat().st_size} bytes"
        )


def _provenance(path: Path, description: Description) -> Provenance:
    return Provenance(
        toolbox=TOOLBOX,
        path=str(path),
        sha256=description.sha256,
        attack=description.attack,
        dataset=description.dataset,
        architecture=description.architecture,
        poison_rate=description.poison_rate,
        seed=description.seed,
        mean=description.mean,
        std=description.std,
        architecture_options=description.architecture_options,
    )
