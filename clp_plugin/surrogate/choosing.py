"""A threshold for CLP with no data: the one that takes a surrogate trigger's success away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.hooks import eval_mode
from clp_plugin.selection.outliers import PRUNED_KINDS, select
from clp_plugin.surrogate.finding import Found, Gate, find_surrogates
from clp_plugin.surrogate.pixels import PixelNetwork, per_channel
from clp_plugin.surrogate.stopping import Tried, best_stop, try_masks
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import LayerKind, Mask, Progress, Scores

CANDIDATES: tuple[float, ...] = tuple(np.arange(5.0, 0.99, -0.25).tolist())


@dataclass(frozen=True, eq=False)
class ChosenThreshold:
    """A threshold that was chosen without data.

    Attributes:
        u: The threshold; infinite where nothing is to be pruned.
        mask: The channels above it.
        found: The search that led to it.
        curve: Success that is left and agreement for each candidate, nothing pruned first; that one alone if the patch
            was not strong enough to act on.
    """

    u: float
    mask: Mask
    found: Found
    curve: tuple[Tried, ...]

    @property
    def surrogate(self) -> Surrogate:
        """The patch that led to the threshold; its target is the suspected class."""
        return self.found.patch

    @property
    def accepted(self) -> bool:
        """Whether the patch was strong enough to act on; otherwise nothing is pruned."""
        return self.found.accepted

    @property
    def chosen(self) -> Tried:
        """The candidate that was chosen."""
        return next(one for one in self.curve if one.u == self.u)

    @property
    def says(self) -> str:
        """The finding and the choice in one line, with the numbers."""
        if math.isinf(self.u):
            why = "no u is worth what it costs" if self.accepted else "no u is chosen"
            return f"{self.found.says}; {why}: nothing is pruned"
        kept = f"logits agree to {self.chosen.agreement:.2f} with those before"
        return f"{self.found.says}; u = {self.u:g} leaves it {self.chosen.success:.0%}, and {kept}"

    def to_json(self) -> dict[str, Any]:
        """The choice and its evidence, as plain JSON values for a log: u is null where nothing is pruned."""
        chosen = self.chosen.to_json()
        return {
            **self.found.to_json(),
            "u": chosen["u"],
            "finding": self.says,
            "success": chosen["success"],
            "agreement": chosen["agreement"],
            "curve": [one.to_json() for one in self.curve],
        }


def choose_u(
    view: FusedView,
    scores: Scores,
    *,
    input_shape: Sequence[int],
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    layers: Sequence[LayerKind] = PRUNED_KINDS,
    gate: Gate | None = None,
    candidates: Sequence[float] = CANDIDATES,
    count: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
) -> ChosenThreshold:
    """Choose CLP's threshold with nothing but the weights.

    A small patch is sought that sends images, synthesised from the BatchNorm statistics, to one class. The largest candidate
    is chosen that leaves the patch a success of 20 % or less; if none does, the one that takes most of its success for the
    least change of the logits of synthetic images. Where no patch is strong enough, nothing is pruned. An opt-in: its verdict
    is a hint that is not validated at scale.

    Args:
        view: The network's linear layers.
        scores: One score per channel of these.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of the normalization that the network wants, per channel or one for all, on the [0, 1] scale.
        std: Standard deviation of that normalization. By default the network takes pixels in [0, 1].
        layers: The kinds of layers to prune.
        gate: The strength that a patch must have.
        candidates: The values of u to try, 0 or more.
        count: Number of images to synthesise with classes; as many again without.
        seed: Seed of the images.
        progress: Called with the stages of the search done and in all.

    Raises:
        ConfigError: If no BatchNorm keeps running statistics, or a candidate is no threshold.

    Source:
        Ours. CLP 4.5 leaves u to the user.

    Example:
        >>> import torch
        >>> from clp_plugin import choose_u, fuse, score
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> view = fuse(model.eval(), (3, 8, 8))
        >>> chosen = choose_u(view, score(view), input_shape=(3, 8, 8), count=10)
        >>> chosen.accepted, len(chosen.mask)
        (False, 0)
    """  # noqa: E501
    channels = input_shape[0]
    network = PixelNetwork(view.model, per_channel(mean, channels), per_channel(std, channels))
    thresholds = (math.inf, *candidates)
    masks = [select(scores, u, layers=layers) for u in thresholds]
    with eval_mode(view.model):
        found = find_surrogates(network, input_shape, gate=gate, count=count, seed=seed, progress=progress)
        worth_trying = masks if found.accepted else masks[:1]
        tried = try_masks(network, worth_trying, [found.patch], found.held_out, found.like_training)
    curve = tuple(replace(one, u=u) for one, u in zip(tried, thresholds, strict=False))
    best = best_stop(tried)
    return ChosenThreshold(thresholds[best], masks[best], found, curve)
