"""The networks of the built-in bench, by name. All take ``(B, 3, H, W)`` with H and W of at least 8."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from clp_plugin.errors import ConfigError, unknown_name

from .preact import PreActResNet, SENet, WideResNet
from .resnet import ResNet
from .vgg import VGG, VGG11, VGG16, VGG19

_TWO_EACH = (2, 2, 2, 2)
_MAX_BLOCKS = 1000


def resnet18(*, num_classes: int = 10, width: int = 64, blocks: Sequence[int] = _TWO_EACH) -> nn.Module:
    """Residual network; ``width`` channels in the first of ``len(blocks)`` stages."""
    return ResNet(num_classes, width, blocks)


def resnet20(*, num_classes: int = 10, width: int = 16, blocks: Sequence[int] = (3, 3, 3)) -> nn.Module:
    """The residual network for CIFAR of 20 layers, with 1x1 convolutions as shortcuts where the shape changes."""
    return ResNet(num_classes, width, blocks)


def resnet34(*, num_classes: int = 10, width: int = 64, blocks: Sequence[int] = (3, 4, 6, 3)) -> nn.Module:
    """ResNet-34: :func:`resnet18` with more blocks."""
    return ResNet(num_classes, width, blocks)


def preactresnet18(*, num_classes: int = 10, width: int = 64, blocks: Sequence[int] = _TWO_EACH) -> nn.Module:
    """Pre-activation residual network."""
    return PreActResNet(num_classes, width, blocks)


def wrn16_1(*, num_classes: int = 10, width: int = 16, blocks: Sequence[int] = (2, 2, 2)) -> nn.Module:
    """Wide residual network of 16 layers; ``width`` is 16 times the widening factor."""
    return WideResNet(num_classes, width, blocks)


def senet18(*, num_classes: int = 10, width: int = 64, blocks: Sequence[int] = _TWO_EACH) -> nn.Module:
    """Pre-activation residual network with squeeze and excitation."""
    return SENet(num_classes, width, blocks)


def senet20(*, num_classes: int = 10, width: int = 16, blocks: Sequence[int] = (3, 3, 3)) -> nn.Module:
    """:func:`senet18` with the stages of :func:`resnet20`: squeeze and excitation in a small network."""
    return SENet(num_classes, width, blocks)


def _vgg(convolutions: Sequence[int], *, num_classes: int = 10, width: int = 64) -> nn.Module:
    return VGG(num_classes, width, convolutions)


BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "preactresnet18": preactresnet18,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet34": resnet34,
    "senet18": senet18,
    "senet20": senet20,
    "vgg11_bn": partial(_vgg, VGG11),
    "vgg16_bn": partial(_vgg, VGG16),
    "vgg19_bn": partial(_vgg, VGG19),
    "wrn16_1": wrn16_1,
}


def build(name: str, *, num_classes: int, **options: object) -> nn.Module:
    """Build a network with random weights from torch's current global generator.

    Args:
        name: A key of ``BUILDERS``.
        num_classes: Number of classes, at least 1.
        **options: ``width`` (channels of the first stage) and, but for VGG, ``blocks`` (how many in each stage).

    Raises:
        ConfigError: If the name or an option is unknown or has an impossible value.
    """
    if name not in BUILDERS:
        raise ConfigError(unknown_name("model", name, BUILDERS))
    builder = BUILDERS[name]
    known = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of model {name!r}", option, known))
    if num_classes < 1:
        raise ConfigError(f"model {name!r}: expected at least one class, found {num_classes}")
    if not isinstance(options.get("width", 1), int):
        raise ConfigError(f"model {name!r}: expected a whole number for width, found {options['width']!r}")
    blocks = options.get("blocks", (1,))
    if not isinstance(blocks, (list, tuple)) or not all(isinstance(count, int) for count in blocks):
        raise ConfigError(f"model {name!r}: expected blocks like (2, 2, 2, 2), found {blocks!r}")
    if sum(blocks) > _MAX_BLOCKS:
        raise ConfigError(f"model {name!r}: expected at most {_MAX_BLOCKS} blocks in all, found {sum(blocks)}")
    return builder(num_classes=num_classes, **options)
