"""Copies of all parts of a record in its own folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clp_plugin.files.atomic import write_atomically
from clp_plugin.types import Ints

from ..image_sets.stored_images import LabelledImages, StoredImages
from .description import Description, Part, TriggerParts
from .pictures import pair


def copied(place: Path, description: Description, images: LabelledImages) -> Description:
    """The same record of copies; of the images only those that are used.

    Args:
        place: The record's folder, to be filled.
        description: The record, of parts where they lie.
        images: The record's clean images.
    """
    used = np.asarray(description.test + description.benign, dtype=np.int64)
    shape = description.input_shape
    pixels, labels = images.images.sized(shape)[used], images.labels[used]
    held = LabelledImages(StoredImages(place, (_arrays(place / "images.npz", x=pixels, y=labels),), pixels), labels)
    network = description.network
    return replace(
        description,
        network=replace(
            network,
            checkpoint=_copy(place, "checkpoint", network.checkpoint),
            code=None if network.code is None else _copy(place, "architecture", network.code),
        ),
        images=Part("images.npz", held.digest(np.arange(len(used)))),
        labels=None,
        trigger=_trigger(place, description, images, used),
        test=tuple(range(len(description.test))),
        benign=tuple(range(len(description.test), len(used))),
    )


def _trigger(place: Path, description: Description, images: LabelledImages, used: Ints) -> TriggerParts:
    trigger = description.trigger
    if trigger.kind != "triggered":
        # Not "trigger": of that name is the figure that shows the images with the trigger on.
        mask = None if trigger.mask is None else _copy(place, "trigger_mask", trigger.mask)
        return replace(trigger, picture=_copy(place, "trigger_picture", trigger.picture), mask=mask)
    ready, _ = pair(images, trigger.picture.below(place), description.input_shape)
    position_of = {int(image): position for position, image in enumerate(used)}
    own = np.asarray([i for i, image in enumerate(ready.clean_index) if int(image) in position_of], dtype=np.int64)
    index = np.asarray([position_of[int(ready.clean_index[i])] for i in own], dtype=np.int64)
    pixels = ready.pixels[own]
    file = _arrays(place / "triggered.npz", x=pixels, index=index)
    return replace(trigger, picture=Part(file.name, StoredImages(place, (file,), pixels).digest(index)))


def _arrays(path: Path, **arrays: NDArray[Any]) -> Path:
    named: dict[str, Any] = arrays
    write_atomically(path, lambda file: np.savez(file, **named))
    return path


def _copy(place: Path, name: str, part: Part) -> Part:
    source = Path(part.path)
    own = Path(name).with_suffix("".join(source.suffixes[-1:]))
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place / own)
    return Part(own.name, part.sha256)
