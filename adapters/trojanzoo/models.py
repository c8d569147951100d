"""TrojanZoo's residual networks, as its attacks store them, without TrojanZoo: torchvision's in its own order of parts."""

from __future__ import annotations

from collections import OrderedDict

import torchvision
from torch import nn

from clp_plugin.errors import ConfigError, unknown_name

_SMALL = "_comp"
NETWORKS = tuple(
    name + end
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
    for end in ("", _SMALL)
)


def build(name: str, *, num_classes: int) -> nn.Module:
    """Build a network with random weights; the normalization, which TrojanZoo's own begins with, has none and is left out.

    Args:
        name: A name of ``NETWORKS``; ``_comp`` is TrojanZoo's word for a 3x3 stem without pooling.
        num_classes: Number of classes, at least 1.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in NETWORKS:
        raise ConfigError(unknown_name("network of TrojanZoo", name, NETWORKS))
    whole = torchvision.models.get_model(name.removesuffix(_SMALL), weights=None, num_classes=num_classes)
    stem: dict[str, nn.Module] = {"conv1": whole.conv1, "bn1": whole.bn1, "relu": whole.relu}
    if name.endswith(_SMALL):
        stem["conv1"] = nn.Conv2d(3, whole.conv1.out_channels, 3, padding=1, bias=False)
    else:
        stem["maxpool"] = whole.maxpool
    stages = {f"layer{number}": getattr(whole, f"layer{number}") for number in (1, 2, 3, 4)}
    parts = {
        "features": nn.Sequential(OrderedDict({**stem, **stages})),
        "pool": whole.avgpool,
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(OrderedDict({"fc": whole.fc})),
    }
    return nn.Sequential(OrderedDict(parts))
