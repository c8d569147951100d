"""The search for a trigger with no data, as commands run it: on the device that was asked for, with its progress shown."""

from __future__ import annotations

from collections.abc import Sequence

from clp_plugin.cli.console import progress_bar, say
from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.devices import moved
from clp_plugin.surrogate.choosing import ChosenThreshold, choose_u
from clp_plugin.types import LayerKind, Scores


def choose_threshold(
    view: FusedView,
    scores: Scores,
    input_shape: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    layers: Sequence[LayerKind],
    seed: int,
    device: str,
) -> ChosenThreshold:
    """Choose u as :func:`clp_plugin.surrogate.choosing.choose_u` does, and say what was found.

    Args:
        view: The network's linear layers; its model is back where it was afterwards.
        scores: One score per channel of these.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of the network's normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of that normalization, per channel, on the [0, 1] scale.
        layers: The kinds of layers to prune.
        seed: Seed of the search.
        device: The device to search on.

    Raises:
        ConfigError: If the network has no BatchNorm statistics, or its images are too small.
    """
    with moved(view.model, device), progress_bar("surrogate trigger") as report:
        chosen = choose_u(
            view, scores, input_shape=input_shape, mean=mean, std=std, layers=layers, seed=seed, progress=report
        )
    say(chosen.says)
    return chosen
