"""Layers that the networks of this bench share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from clp_plugin.errors import ConfigError


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size at stride 1; no bias, as a BatchNorm or a sum follows."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def add_stages(model: nn.Module, block: Callable[[int, int, int], nn.Module], width: int, blocks: Sequence[int]) -> int:
    """Add ``layer1``, ``layer2``, ... to ``model``; each doubles the channels, all but the first halve the size.

    Args:
        model: Changed in place.
        block: Called with (input channels, output channels, stride).
        width: Channels of the first stage.
        blocks: Number of blocks in each stage.

    Returns:
        The channels of the last stage.
    """
    channels = width
    for index, count in enumerate(blocks):
        outputs = width * 2**index
        stage = nn.Sequential()
        for position in range(count):
            stage.append(block(channels, outputs, 2 if index > 0 and position == 0 else 1))
            channels = outputs
        model.add_module(f"layer{index + 1}", stage)
    return channels


def run_stages(model: nn.Module, x: Tensor, count: int) -> Tensor:
    """Pass ``x`` through ``layer1`` to ``layer{count}``."""
    for index in range(1, count + 1):
        x = model.get_submodule(f"layer{index}")(x)
    return x


def initialise(model: nn.Module) -> None:
    """Draw the convolutions from He's distribution (fan-out), in place, with torch's current global generator."""
    for module in model.modules():
        # A meta tensor holds no numbers, and to draw them torch would import its compiler: two seconds a record opened.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def check_size(width: int, blocks: Sequence[int]) -> tuple[int, ...]:
    """The blocks as a tuple.

    Raises:
        ConfigError: If the width or a stage's number of blocks is below 1.
    """
    if width < 1 or not blocks or min(blocks) < 1:
        raise ConfigError(
            f"expected a width and a number of blocks a stage of at least 1, found {width} and {list(blocks)}"
        )
    return tuple(blocks)
