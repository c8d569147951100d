"""Every network that the toolbox knows by name, built without any download, with the toolbox's state-dict keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from clp_plugin.errors import CheckpointError, unknown_name
from clp_plugin.networks.architectures import build_model
from clp_plugin.networks.fitting import fit_state_dict

from .resnext import ResNeXt29

_FROM_TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "densenet161", "efficientnet_b0", "efficientnet_b3", "googlenet",
    "inception_v3", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "resnet18", "resnet34", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0", "vgg11", "vgg16", "vgg19", "vgg19_bn", "wide_resnet50_2",
)  # fmt: skip
_VISION_TRANSFORMERS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")
_OURS = ("preactresnet18", "senet18")
NAMES = tuple(sorted((*_FROM_TORCHVISION, *_VISION_TRANSFORMERS, *_OURS, "resnext29")))


def build(model_name: str, num_classes: int, *, channels: int = 3) -> nn.Module:
    """An untrained network in eval mode.

    Args:
        model_name: One of ``NAMES``: what the toolbox calls ``--model``.
        num_classes: Number of outputs, at least 1.
        channels: Channels of the images: 3, or 1 for networks whose first convolution was changed for MNIST.

    Raises:
        CheckpointError: If the toolbox has no network of that name.
        ConfigError: If it cannot be built with so many classes.
    """
    if model_name not in NAMES:
        raise CheckpointError(f"backdoorbench: {unknown_name('model', model_name, NAMES)}")
    makers: dict[str, Callable[[int], nn.Module]] = {"resnext29": ResNeXt29}
    makers |= {name: partial(_named, f"torchvision:{name}") for name in _FROM_TORCHVISION}
    makers |= {name: partial(_named, f"builtin:{name}") for name in _OURS}
    makers |= {name: partial(_vision_transformer, name) for name in _VISION_TRANSFORMERS}
    model = makers[model_name](num_classes).eval()
    if channels != 3:
        _take_channels(model, channels)
    return model


def load(model_name: str, num_classes: int, state_dict: Mapping[str, Tensor], *, where: str) -> nn.Module:
    """A network in eval mode with the toolbox's weights; how many channels it takes is read off its first convolution.

    Args:
        model_name: The network's name in the toolbox, one of ``NAMES``.
        num_classes: Number of outputs, at least 1.
        state_dict: The weights as they were stored.
        where: File and architecture, for the message.

    Raises:
        CheckpointError: If the name is unknown, or names the first key that does not fit.
        ConfigError: If the network cannot be built with so many classes.
    """
    first = next((value for value in state_dict.values() if value.ndim == 4), None)
    channels = 1 if first is not None and first.shape[1] == 1 else 3
    model = build(model_name, num_classes, channels=channels)
    load_weights(model, state_dict, where=where)
    return model.eval()


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, where: str) -> None:
    """Load weights in place. Where keys differ but shapes agree one by one, position decides, as in the toolbox.

    Args:
        model: A network that :func:`build` made.
        state_dict: The weights as they were stored.
        where: File and architecture, for the message.

    Raises:
        CheckpointError: Names the first key that does not fit.
    """
    wanted = model.state_dict()
    same_shapes = [tuple(value.shape) for value in wanted.values()] == [tuple(v.shape) for v in state_dict.values()]
    if wanted.keys() != state_dict.keys() and same_shapes:
        state_dict = dict(zip(wanted, state_dict.values(), strict=True))
    fit_state_dict(model, state_dict, where=where)


def _take_channels(model: nn.Module, channels: int) -> None:
    """Give the first convolution, in place, another number of input channels."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.detach()[:, :1].repeat(1, channels, 1, 1))


def _named(spec: str, num_classes: int) -> nn.Module:
    return build_model(spec, num_classes=num_classes)


def _vision_transformer(name: str, num_classes: int) -> nn.Module:
    """Behind a resize to 224x224, so that all keys start with ``1.``."""
    from torchvision.transforms import Resize

    network: Any = build_model(f"torchvision:{name}", num_classes=num_classes)
    return nn.Sequential(Resize((224, 224)), network)
