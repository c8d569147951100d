"""Reading the records that ``backdoorbench_trees`` writes, and their images as the toolbox itself gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from clp_plugin.adapters.backdoorbench.record import BackdoorBenchAdapter
from clp_plugin.errors import RecordError
from clp_plugin.types import ImageSet

ADAPTER = BackdoorBenchAdapter()
# The toolbox's test transform, as its source has it.
TRANSFORM = Compose([Resize((32, 32)), ToTensor(), Normalize([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])])


def transformed(pixels: Any) -> Tensor:
    """Images ``(N, H, W, 3)`` as the toolbox's own pipeline gives them to the network."""
    return torch.stack([TRANSFORM(Image.fromarray(image)) for image in pixels])


def everything(images: ImageSet) -> Tensor:
    return torch.cat(list(images.batches(7)))


def refusal(folder: Path, kind: type[Exception] = RecordError) -> str:
    """The one line with which a record is refused."""
    with pytest.raises(kind) as caught:
        ADAPTER.open(folder)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)
