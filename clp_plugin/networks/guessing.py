"""Guessing what a checkpoint and its network leave unsaid: the number of classes and the shape of an input."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clp_plugin.errors import CheckpointError
from clp_plugin.networks.alignment import bare
from clp_plugin.networks.kinds import CONV_TYPES

_HEAD = re.compile(r"^(?:fc|heads?|classifier|linear|last_linear|logits|output)\d*$")
_USUAL_SIZES = (32, 28, 224, 64, 96, 299)
_SIZE_OPTIONS = ("img_size", "image_size", "input_size")


def infer_num_classes(weights: Mapping[str, Tensor]) -> int:
    """The number of classes a checkpoint was trained for: rows of the weight that :func:`head_of` names.

    Raises:
        CheckpointError: If there is no such weight.
    """
    return int(weights[head_of(weights)].shape[0])


def head_of(weights: Mapping[str, Tensor]) -> str:
    """The key of the last linear weight, or of the last 1x1 convolution.

    Layers with the usual name of a head go first, those nearest to the top before all, because safetensors files do not keep
    the order of the layers.

    Raises:
        CheckpointError: If there is no such weight.
    """
    ending = {key: value for key, value in weights.items() if key.endswith("weight") and isinstance(value, Tensor)}
    linear = [key for key, value in ending.items() if value.ndim == 2]
    pointwise = [key for key, value in ending.items() if value.ndim == 4 and tuple(value.shape[2:]) == (1, 1)]
    candidates = linear or pointwise
    if not candidates:
        raise CheckpointError(
            f"cannot tell the number of classes: none of the {len(weights)} tensors is a linear weight (out, in) or a 1x1 "
            "convolution; pass --num-classes"
        )
    depths = {key: depth for key in candidates if (depth := _depth_of_head(key)) is not None}
    nearest = [key for key, depth in depths.items() if depth == min(depths.values())]
    return max(nearest, key=_natural) if nearest else candidates[-1]


def guess_input_shape(model: nn.Module) -> tuple[int, int, int]:
    """The first usual size on which a network runs, square, with as many channels as it takes.

    Args:
        model: A network in eval mode.
    """
    shapes = ((channels_taken(model, size, size), size, size) for size in _USUAL_SIZES)
    known = ((channels, height, width) for channels, height, width in shapes if channels is not None)
    return next(known, (_first_channels(model), _USUAL_SIZES[0], _USUAL_SIZES[0]))


def channels_taken(model: nn.Module, height: int, width: int) -> int | None:
    """How many channels an input of this size has: those of the first convolution, or 3 or 1 where the image is rearranged
    in front of it; None if the network runs on none of them.

    Args:
        model: A network in eval mode.
        height: Height of the input, in pixels.
        width: Width of the input, in pixels.
    """
    likely = dict.fromkeys((_first_channels(model), 3, 1))
    return next((channels for channels in likely if runs_on(model, (channels, height, width))), None)


def runs_on(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a network takes one input of this shape; the first one makes lazy modules ordinary ones."""
    first = next((value for value in model.parameters() if value.is_floating_point()), torch.empty(0))
    try:
        with torch.no_grad():
            model(torch.zeros((1, *shape), dtype=first.dtype, device=first.device))
    except Exception:  # a network's own code may fail in any way
        return False
    return True


def size_in(options: Mapping[str, object]) -> tuple[int, int] | None:
    """The height and width that options of an architecture give."""
    given = next((options[name] for name in _SIZE_OPTIONS if name in options), None)
    if isinstance(given, int):
        return given, given
    if isinstance(given, (list, tuple)) and len(given) >= 2 and all(isinstance(side, int) for side in given):
        return int(given[-2]), int(given[-1])
    return None


def _first_channels(model: nn.Module) -> int:
    """Input channels of the first convolution; 3 without one."""
    convolutions: Iterator[Any] = (module for module in model.modules() if isinstance(module, CONV_TYPES))
    return next((int(module.weight.shape[1] * module.groups) for module in convolutions), 3)


def _depth_of_head(key: str) -> int | None:
    """How many modules stand above the one that is named like a head; None if none is."""
    parts = bare(key).split(".")
    return next((depth for depth, part in enumerate(parts) if _HEAD.match(part)), None)


def _natural(key: str) -> list[tuple[int, str]]:
    """Sort key under which ``classifier.10`` follows ``classifier.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]
