"""Pruning in rounds: find what drives the triggers, prune until they fail, look for a larger one, again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clp_plugin.fusion.view import FusedView
from clp_plugin.masking.apply import apply_mask
from clp_plugin.selection.outliers import PRUNED_KINDS
from clp_plugin.surrogate.finding import Found
from clp_plugin.surrogate.order import gain_over_cost, prefix_masks, ranked
from clp_plugin.surrogate.patch import first_order_gain, refine_patch, windows
from clp_plugin.surrogate.pattern import refine_pattern
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.stopping import best_stop, try_masks
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import Mask, Progress

_REACH, _WINDOWS = 2, 5


@dataclass(frozen=True)
class Round:
    """One round, as it is worth keeping in a log.

    Attributes:
        families: The families of the triggers that it worked against.
        size: Side of the patch.
        before: The largest success of a trigger before the round, on synthetic images.
        after: The largest success that the round left to them.
        agreement: Agreement of the logits of synthetic images with those before the first round
            (:func:`clp_plugin.surrogate.stopping.agreement`).
        mask: The channels that the round pruned.
    """

    families: tuple[str, ...]
    size: int
    before: float
    after: float
    agreement: float
    mask: Mask

    @property
    def pruned(self) -> int:
        """Number of channels that the round pruned."""
        return len(self.mask)

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as plain JSON values; of the mask the number of channels, ``pruned``."""
        told = {**vars(self), "pruned": self.pruned}
        del told["mask"]
        return told


def prune_in_rounds(
    network: PixelNetwork, view: FusedView, found: Found, *, rounds: int, enough: float = 0.5,
    least_agreement: float = 0.8, progress: Progress | None = None,
) -> tuple[Mask, list[Round]]:  # fmt: skip
    """Prune ``network`` in place until no trigger of its target class works.

    A round ranks the channels by gain over cost (:func:`clp_plugin.surrogate.order.gain_over_cost`) against the triggers at
    hand, and prunes the shortest prefix of that order that leaves them little, of those that keep ``least_agreement``
    (:func:`clp_plugin.surrogate.stopping.best_stop`). Then the patch is sought again one pixel larger, near its place and
    at the five windows where replacing pixels gains most, and the pattern at its norm. Rounds end when both succeed on less
    than ``enough``, or with a round that prunes nothing.

    Args:
        network: The network behind its normalization, in eval mode.
        view: The linear layers; their names must be those of the network.
        found: The triggers and the images.
        rounds: The most rounds, 1 or more.
        enough: The success below which a trigger counts as gone.
        least_agreement: The agreement, 0 to 1, of the logits after all rounds with those before the first one that must be
            left: a trigger that only a broken network would lose is left in place.
        progress: Called with the rounds done and the most rounds.

    Returns:
        All channels pruned, and what each round did.
    """
    widths = prunable_widths(view)
    total, log, surrogates = Mask({}), [], found.agreeing
    before = network.answers(found.like_training)
    for number in range(rounds):
        values = gain_over_cost(network, found.fit, surrogates, list(widths))
        masks = prefix_masks(ranked(values), widths)
        tried = try_masks(network, masks, surrogates, found.held_out, found.like_training, before=before)
        best = best_stop(tried, least_agreement=least_agreement)
        apply_mask(network.network, masks[best])
        total = total | masks[best]
        log.append(
            Round(
                tuple(one.family for one in surrogates), surrogates[0].size, tried[0].success, tried[best].success,
                tried[best].agreement, masks[best],
            )
        )  # fmt: skip
        if progress is not None:
            progress(number + 1, rounds)
        if tried[best].pruned == 0:
            break
        if number + 1 < rounds:
            surrogates = [_sought_again(network, found, one) for one in surrogates]
            if max(one.success for one in surrogates) < enough:
                break
    return total, log


def prunable_widths(view: FusedView) -> dict[str, int]:
    """Layer to number of channels, of the layers that rounds may prune."""
    return {x.name: x.channels for x in view.layers if x.kind in PRUNED_KINDS and not x.unprunable}


def _sought_again(network: PixelNetwork, found: Found, old: Surrogate) -> Surrogate:
    if old.place is None:
        return refine_pattern(network, found.fit, found.held_out, old.target, losses=old.losses, norms=[old.norm])
    side = min(old.size + 1, *found.fit.shape[2:])
    gainful = windows(first_order_gain(network, found.fit[:6], old.target), side, count=_WINDOWS)
    near = [min(start, length - side) for start, length in zip(old.place, found.fit.shape[2:], strict=True)]
    offsets = torch.cartesian_prod(*[torch.arange(-_REACH, _REACH + 1)] * 2).tolist()
    limits = [length - side for length in found.fit.shape[2:]]
    around = {tuple(min(max(0, a + b), top) for a, b, top in zip(near, o, limits, strict=True)) for o in offsets}
    places = sorted({(row, column) for row, column in (*around, *gainful)})
    return refine_patch(
        network, found.fit, found.held_out, old.target, places=places, side=side, sizes=[side], losses=old.losses, reach=0
    )  # fmt: skip
