"""What BackdoorBox leaves of a training, and an attack object as its own look to us; made of a user's own parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from own_parts import TARGET, OwnParts
from torch import Tensor, nn

from clp_plugin.imports import import_file

LOG = "Total train samples: 20\nBatch size: 10\n"


class Images:
    """A data set in the habit of torch: items of image in [0, 1] and label, ended by its length."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pixels, self.targets = pixels, list(labels)
        self.transform: Callable[[Tensor], Tensor] = lambda image: image

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if position >= len(self):
            raise AssertionError("asked for an image that is not there")
        return self.transform(torch.from_numpy(self.pixels[position]).float() / 255), int(self.targets[position])


class BadNets:
    """An attack object as BackdoorBox's are, after training."""

    def __init__(self, parts: OwnParts) -> None:
        self.model: nn.Module = import_file(parts.network).Reader()
        self.model.load_state_dict(torch.load(parts.checkpoint, weights_only=True)["net"])
        self.test_dataset = Images(parts.pixels, parts.labels)
        self.poisoned_train_dataset = Images(parts.pixels, parts.labels)
        self.poisoned_train_dataset.poisoned_set = frozenset(range(5))  # type: ignore[attr-defined]
        self.poisoned_test_dataset = Images(parts.triggered(), np.full_like(parts.labels, TARGET))

    def get_model(self) -> nn.Module:
        return self.model

    def get_poisoned_dataset(self) -> tuple[Images, Images]:
        return self.poisoned_train_dataset, self.poisoned_test_dataset


def experiment(root: Path, parts: OwnParts, *, prefix: str = "") -> Path:
    """The folder of a training, with a checkpoint of an earlier epoch that is worth nothing."""
    folder = root / f"badnets_{time.strftime('%Y-%m-%d_%H:%M:%S')}"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(LOG)
    state = BadNets(parts).get_model().state_dict()
    torch.save({key: torch.zeros_like(value) for key, value in state.items()}, folder / "ckpt_epoch_9.pth")
    torch.save({prefix + key: value for key, value in state.items()}, folder / "ckpt_epoch_10.pth")
    return folder


TEST = """
import os, torch
def test(model, dataset, schedule):
    if not hasattr(dataset, 'tensors'):
        dataset.targets = []
        print('ran', schedule)
        return
    images, labels = dataset.tensors
    right = int((model(images).argmax(1) == labels).sum())
    place = os.path.join(schedule['save_dir'], schedule['experiment_name'] + '_2026-01-01_00:00:00')
    os.makedirs(place)
    with open(os.path.join(place, 'log.txt'), 'w') as log:
        log.write(f'Top-1 correct / Total: {right}/{len(labels)}, Top-1 accuracy: no')
"""
PRUNING = """
import torch
class MaskedLayer(torch.nn.Module):
    def __init__(self, base, mask):
        super().__init__()
        self.base, self.mask = base, mask
    def forward(self, x):
        return self.base(x) * self.mask
class Pruning:
    def __init__(self, train_dataset, model, layer, prune_rate, seed):
        self.model, self.layer, self.data = model, layer, train_dataset
        print('sees', len(train_dataset))
    def repair(self, schedule):
        mask = torch.ones(3).cuda().reshape(1, -1, 1, 1)
        mask[0, 1] = 0
        setattr(self.model, self.layer, MaskedLayer(getattr(self.model, self.layer), mask))
    def get_model(self):
        return self.model
"""


def core_checkout(root: Path) -> Path:
    """A checkout of BackdoorBox in miniature: one attack imports what nobody has, and so does the package as a whole."""
    files = {
        "core/__init__.py": "from .attacks import *\nfrom .defenses import *\nfrom .models import *\n",
        "core/attacks/__init__.py": "from .BadNets import BadNets\nfrom .Lost import Lost\n",
        "core/attacks/base.py": "class Base:\n    pass\n",
        "core/attacks/BadNets.py": "from .base import *\nclass BadNets(Base):\n    pass\n",
        "core/attacks/Lost.py": "import package_that_nobody_has\nclass Lost:\n    pass\n",
        "core/defenses/__init__.py": "from .NAD import NAD\n",
        "core/defenses/base.py": "",
        "core/defenses/Pruning.py": PRUNING,
        "core/defenses/NAD.py": "from ..utils import test\nclass NAD:\n    test = staticmethod(test)\n",
        "core/models/__init__.py": "class ResNet:\n    pass\n",
        "core/utils/__init__.py": "from .test import test\n",
        "core/utils/test.py": TEST,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
