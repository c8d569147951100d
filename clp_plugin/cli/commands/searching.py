"""The search for a trigger with no data, as commands run it: on the device that was asked for, with its progress shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from clp_plugin.cli.console import progress_bar, say, show_table
from clp_plugin.files.atomic import write_atomically
from clp_plugin.fusion.view import FusedView
from clp_plugin.images import Pixels
from clp_plugin.networks.devices import moved
from clp_plugin.selection.outliers import z_scores
from clp_plugin.surrogate.choosing import ChosenThreshold, choose_u
from clp_plugin.surrogate.finding import Found
from clp_plugin.surrogate.repairing import SurrogateRepair, surrogate_repair
from clp_plugin.types import LayerKind, Scores

SURROGATE = "surrogate"  # stem of its files
_SHOWN, _IMAGES = 10, 8


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
    _say_limits(chosen.found)
    return chosen


def repair_by_surrogate(
    view: FusedView, input_shape: Sequence[int], *, mean: Sequence[float], std: Sequence[float], seed: int, device: str
) -> SurrogateRepair:
    """Seek a trigger and what to prune as :func:`clp_plugin.surrogate.repairing.surrogate_repair` does.

    Args:
        view: The network's linear layers; its model is back where it was afterwards.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of the network's normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of that normalization, per channel, on the [0, 1] scale.
        seed: Seed of the search.
        device: The device to search on.

    Raises:
        ConfigError: If the network has no BatchNorm statistics, or its images are too small.
    """
    with moved(view.model, device), progress_bar("surrogate trigger") as report:
        return surrogate_repair(view, input_shape=input_shape, mean=mean, std=std, seed=seed, progress=report)


def write_surrogate(found: Found, place: Path) -> list[str]:
    """The patch as an array that ``bench record --trigger`` takes, and a picture of it on synthetic images.

    Args:
        found: The search.
        place: The folder that is being filled.

    Returns:
        The names of the files.
    """
    from clp_plugin.reports.figures import example_images_figure, save_figure

    write_atomically(place / f"{SURROGATE}.npy", lambda file: np.save(file, found.patch.values.numpy()))
    images = found.held_out[:_IMAGES].cpu()
    if images.shape[1] not in (1, 3):
        return [f"{SURROGATE}.npy"]
    plain, shown = (_pixels(one) for one in (images, found.patch.attach(images)))
    save_figure(example_images_figure(plain, shown), place / SURROGATE)
    return [f"{SURROGATE}{suffix}" for suffix in (".npy", ".png", ".pdf")]


def _pixels(images: Tensor) -> Pixels:
    return (images * 255).round().byte().numpy()


def show_surrogate(repair: SurrogateRepair, scores: Scores) -> None:
    """The classes, the channels and the rounds in tables, and the finding with its numbers in a line."""
    found = repair.found
    easiest = sorted(found.patch.losses.items(), key=lambda item: item[1])
    show_table(
        f"easiest of {len(easiest)} classes",
        ("class", "cross-entropy by a 5x5 patch"),
        easiest[:_SHOWN],
    )
    pruned = repair.mask.indices()
    rows = [
        (one.layer, one.channel, one.gain_over_cost, float(z_scores(scores.sigma[one.layer])[one.channel]),
         "yes" if one.channel in pruned.get(one.layer, []) else "")
        for one in repair.driven
    ]  # fmt: skip
    show_table(
        f"channels that the patch drives to {found.patch.target}",
        ("layer", "channel", "gain / cost", "z of sigma", "pruned"),
        rows,
    )
    if repair.rounds:
        show_table(
            "rounds of a repair, on synthetic images",
            ("patch", "success before %", "after %", "agreement %", "channels"),
            [(f"{r.size}x{r.size}", 100 * r.before, 100 * r.after, 100 * r.agreement, r.pruned) for r in repair.rounds],
        )
    if len(repair.mask):
        say(f"prunes {repair.mask!r}")
    say(f"{repair.says}; no real image was seen")
    _say_limits(found)


def _say_limits(found: Found) -> None:
    for limit in found.limits:
        say(f"note: {limit}")
