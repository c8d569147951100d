"""A user whose script defines networks, trains them and reads their checkpoints."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.masking.apply import masked
from clp_plugin.networks.loading import LoadedNetwork
from clp_plugin.types import Mask

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4, depth=1, channels=3, head=True):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.more = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(depth)))
        self.fc = nn.Linear(6, num_classes) if head else nn.Identity()

    def forward(self, x):
        return self.fc(self.more(self.bn(self.conv(x)).relu()).mean((2, 3)))

class Stateful(Net):
    count = 3

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 2)

class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.loss = Net(), nn.CrossEntropyLoss(torch.ones(4))

def wide(num_classes):
    return nn.DataParallel(Net(num_classes))

def rearranged(num_classes):
    stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 6, 3), nn.BatchNorm2d(6))
    return nn.Sequential(stem, nn.Flatten(), nn.Linear(6 * 12 * 12, num_classes))

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(6, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.LazyLinear(num_classes))
"""
MASK = Mask({"bn": np.array([False, True, False, False, True, False])})
KEYS = ("bn.weight", "bn.bias")


class User:
    """What the user's own script defines."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "nets.py"
        self.file.write_text(textwrap.dedent(SOURCE))
        names: dict[str, Any] = {"__name__": "training_script"}
        exec(SOURCE, names)
        self.names = names

    def make(self, name: str = "Net", *, seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        model = self.names[name](**options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, 0.5, 1.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.eval()

    def arch(self, name: str = "Net") -> str:
        return f"{self.file}:{name}"


def repaired(loaded: LoadedNetwork, out: Path, mask: Mask = MASK) -> nn.Module:
    model = masked(loaded.model, mask)
    loaded.save(model, out)
    return model


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Places in which two contents differ, in type, order or value."""
    assert type(before) is type(after), where
    if isinstance(before, dict):
        assert list(before) == list(after), where
        assert getattr(before, "_metadata", None) == getattr(after, "_metadata", None), where
        return [place for key in before for place in differences(before[key], after[key], f"{where}/{key}")]
    if isinstance(before, (list, tuple)):
        assert len(before) == len(after), where
        return [
            place
            for i, pair in enumerate(zip(before, after, strict=True))
            for place in differences(*pair, f"{where}/{i}")
        ]
    if isinstance(before, Tensor):
        assert (before.dtype, before.shape) == (after.dtype, after.shape), where
        return [] if torch.equal(before, after) else [where]
    assert before == after, where
    return []
