"""Opens what ``bench record`` stored: the parts are read where they lie, and are what they were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from clp_plugin.config import is_own_code
from clp_plugin.errors import CheckpointError, RecordError
from clp_plugin.networks.loading import load_network
from clp_plugin.records.adapter import NamesItsFiles, ReadsRecords
from clp_plugin.records.exchange import RecordListing
from clp_plugin.records.parts import TOOLBOX, record_from
from clp_plugin.records.triggers import Shape, Trigger
from clp_plugin.types import Provenance, Record

from ..image_sets.stored_images import LabelledImages, read_labelled
from .description import (
    DESCRIPTION,
    Description,
    NetworkParts,
    TriggerParts,
    names_file,
    read_description,
    require_present,
    require_same_hash,
    require_unchanged,
)
from .pictures import pair, read_trigger
from .request import PartsRequest


class PartsAdapter(ReadsRecords, NamesItsFiles):
    """Reads the records of ``bench record``.

    The base, too, of adapters of toolboxes whose own files do not hold all of a record: the rest is in a description.

    Attributes:
        toolbox: The toolbox's name in the catalogue.
        description: Name of the file that describes a record.
        beside_checkpoint: Whether that file may be put into the folder in which the toolbox keeps a checkpoint.
    """

    toolbox: ClassVar[str] = TOOLBOX
    description: ClassVar[str] = DESCRIPTION
    beside_checkpoint: ClassVar[bool] = False

    @property
    def looks_for(self) -> str:
        return self.description

    def sniff(self, path: Path) -> bool:
        return (path / self.description).is_file()

    def completed(self, request: PartsRequest) -> PartsRequest:
        """The request with what the toolbox's own files say; here they say nothing.

        Raises:
            ConfigError: If they contradict it, or it lacks what they do not say.
        """
        return request

    def trigger_of(self, parts: TriggerParts, folder: Path, shape: Shape) -> Trigger:
        """The trigger of a record, of any kind but ``"triggered"``; errors as of :func:`read_trigger`.

        Args:
            parts: The parts of the trigger.
            folder: The record's folder.
            shape: ``(C, H, W)`` of the images.
        """
        return read_trigger(parts, folder, shape)

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record.

        Args:
            path: The record's folder.
            trust: Allow pickles that run code, and a Python file of the network that was not named on this machine.

        Raises:
            RecordError: If a part is missing, or is not what it was when the record was made.
            CheckpointError: If the weights cannot be read safely, or code would have to run that nobody here named.
        """
        return self.opened(path, read_description(path / self.description), trust=trust)

    def opened(self, path: Path, description: Description, *, trust: bool = False) -> Record:
        """Open a record by its description, which may not be stored yet; errors as of :meth:`open`."""
        images = read_images(path, description)
        shape = description.input_shape
        trigger = description.trigger
        if trigger.kind == "triggered":
            ready = require_present(trigger.picture.below(path))
            triggered, stored = pair(images, ready, shape)
            require_same_hash(ready, trigger.picture, stored.digest(np.arange(len(stored))))
        else:
            for part in filter(None, (trigger.picture, trigger.mask)):
                require_unchanged(part.below(path), part)
        return record_from(
            load_model(path, description, trust=trust),
            images.images.sized(shape),
            images.labels,
            trigger=triggered if trigger.kind == "triggered" else self.trigger_of(trigger, path, shape),
            target=description.target,
            num_classes=description.network.num_classes,
            mean=description.mean,
            std=description.std,
            test=np.asarray(description.test, dtype=np.int64),
            benign=np.asarray(description.benign, dtype=np.int64),
            provenance=self._provenance(path, description),
        )

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("*") if child.is_dir() and self.sniff(child)):
            yield self._listed(path)

    def _listed(self, path: Path) -> RecordListing:
        try:
            found = read_description(path / self.description)
        except RecordError as error:
            return RecordListing(path, str(error), complete=False)
        parts = (found.network.checkpoint, found.images, found.trigger.picture)
        lost = [part.path for part in parts if not part.below(path).exists()]
        origin = self._provenance(path, found)
        summary = f"{origin.attack} (target {found.target}), {origin.dataset}, {origin.architecture}"
        return RecordListing(path, f"missing: {', '.join(lost)}" if lost else summary, complete=not lost)

    def _provenance(self, path: Path, description: Description) -> Provenance:
        network, rate = description.network, description.poison_rate
        name = network.architecture or "whole network"
        return Provenance(
            toolbox=self.toolbox,
            path=str(path),
            sha256=network.checkpoint.sha256,
            attack=description.attack or description.trigger.kind,
            dataset=description.dataset or Path(description.images.path).stem,
            architecture=name if network.code is None else f"{Path(network.code.path).name}:{name}",
            poison_rate=math.nan if rate is None else rate,
            seed=description.seed,
            mean=description.mean,
            std=description.std,
            architecture_options=network.options,
        )


def read_images(folder: Path, description: Description) -> LabelledImages:
    """The clean images of a record.

    Raises:
        RecordError: If they are missing, damaged, or not what they were.
    """
    path = require_present(description.images.below(folder))
    found = read_labelled(path, None if description.labels is None else description.labels.below(folder))
    used = np.asarray(description.test + description.benign, dtype=np.int64)
    if used.min(initial=0) < 0 or used.max(initial=0) >= len(found.labels):
        raise RecordError(f"{path}: expected more images, found {len(found.labels)}")
    require_same_hash(path, description.images, found.digest(used))
    return found


def load_model(folder: Path, description: Description, *, trust: bool) -> nn.Module:
    """The attacked network.

    Raises:
        RecordError: If a file is not what it was.
        CheckpointError: If it cannot be read safely, or code would have to run that nobody here named.
    """
    parts = description.network
    checkpoint = parts.checkpoint.below(folder)
    require_unchanged(checkpoint, parts.checkpoint)
    return load_network(
        checkpoint,
        arch=_architecture(folder, parts, trust=trust),
        key=parts.key,
        options=parts.options,
        num_classes=parts.num_classes,
        input_shape=description.input_shape,
        trust=trust,
        strict=parts.strict,
    ).model


def _architecture(folder: Path, parts: NetworkParts, *, trust: bool) -> str | None:
    """The ``arch`` that ``load_network`` takes; a stranger's record runs no code of its own."""
    if parts.code is None:
        if names_file(parts.architecture):
            raise RecordError(f"{folder}: network.architecture names a Python file whose hash is not there")
        return parts.architecture
    code = parts.code.below(folder)
    require_unchanged(code, parts.code)
    if not trust and not is_own_code(parts.code.sha256):
        raise CheckpointError(
            f"{folder}: the network is built by {code}, which was not given to `bench record` on this machine; read it, and "
            "if you trust it run it with --trust"
        )
    return f"{code}:{parts.architecture}"
