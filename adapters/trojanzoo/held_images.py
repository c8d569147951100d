"""The images of a record as data sets of TrojanZoo."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from clp_plugin.types import ImageSet, Record

_LEVELS = 255


class Held(Dataset[tuple[Tensor, int]]):
    """Images of a record, in [0, 1] before normalization, with their labels."""

    def __init__(self, images: ImageSet, record: Record, transform: Callable[[Any], Tensor] | None = None) -> None:
        """Take the images of a set.

        Args:
            images: A set of the record's images.
            record: The record, whose normalization is undone.
            transform: What TrojanZoo does to a picture of Pillow's when it takes it; nothing if None.
        """
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (record.provenance.mean, record.provenance.std))
        batches = [(batch * std + mean).mul(_LEVELS).round().to(torch.uint8) for batch in images.batches(256)]
        self.pixels, self.labels, self.transform = torch.cat(batches), images.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        pixels = self.pixels[position]
        image = pixels.float() / _LEVELS if self.transform is None else self.transform(to_pil_image(pixels))
        return image, int(self.labels[position])


def data_set(package: ModuleType, record: Record, *, batch_size: int) -> Any:
    """A data set of TrojanZoo's own kind that holds nothing but a record's benign images.

    It trains on them, with its own crops and mirrors, and validates on them: its defenses choose by validation images, which
    in its own data sets are the test images.

    Args:
        package: The package ``trojanvision``.
        record: The record, which holds benign images.
        batch_size: Number of images in a batch.
    """

    def images(self: Any, mode: str, transform: Callable[[Any], Tensor] | None = None, **given: Any) -> Held:
        return Held(record.benign, record, transform if mode == "train" else None)

    origin = record.provenance
    facts = {
        "name": origin.dataset, "num_classes": record.target.num_classes, "data_shape": list(record.input_shape),
        "_get_org_dataset": images,
    }  # fmt: skip
    kind = type("RecordImages", (package.datasets.ImageSet,), facts)
    normalization = {"mean": list(origin.mean), "std": list(origin.std)}
    return kind(batch_size=batch_size, valid_batch_size=batch_size, num_workers=0, norm_par=normalization)
