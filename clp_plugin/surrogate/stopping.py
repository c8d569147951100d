"""How far to prune: the mask that takes most from the surrogate triggers for the least of what the network says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from clp_plugin.masking.apply import apply_mask
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import Mask, Progress


@dataclass(frozen=True)
class Tried:
    """One candidate mask and what it does on synthetic images.

    Attributes:
        pruned: Number of channels that it prunes.
        success: The largest success that is left to a surrogate.
        agreement: Share of the images that keep the class that the network gave them.
        u: The threshold that it comes from, where it comes from one; infinite for the mask that prunes nothing.
    """

    pruned: int
    success: float
    agreement: float
    u: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """The attributes by name, as plain JSON values: an infinite threshold is null."""
        return {**asdict(self), "u": None if self.u == math.inf else self.u}


def try_masks(
    network: PixelNetwork,
    masks: Sequence[Mask],
    surrogates: Sequence[Surrogate],
    held_out: Tensor,
    like_training: Tensor,
    *,
    progress: Progress | None = None,
) -> list[Tried]:
    """Measure each mask; the network is as before afterwards.

    Args:
        network: The network behind its normalization.
        masks: The candidates.
        surrogates: The triggers, at least one.
        held_out: Images that success is measured on.
        like_training: Images that agreement is measured on.
        progress: Called with the masks done and the masks in all.
    """
    own, kept = network.classes(held_out), network.classes(like_training)
    found = []
    for done, mask in enumerate(masks, start=1):
        with apply_mask(network.network, mask):
            success = max(one.success_on(network, held_out, own) for one in surrogates)
            same = agreement(network, like_training, kept)
        found.append(Tried(len(mask), success, same))
        if progress is not None:
            progress(done, len(masks))
    return found


def agreement(network: PixelNetwork, images: Tensor, before: Tensor) -> float:
    """Share of images ``(B, C, H, W)`` that a network gives the class ``(B,)`` that they had before."""
    return float((network.classes(images) == before).double().mean())


def best_stop(tried: Sequence[Tried], *, least_agreement: float = 0.0) -> int:
    """Position of the candidate with the largest fall of success minus fall of agreement; of equal ones the smallest mask.

    Both falls count from the candidate that prunes nothing, so that only success + disagreement matters.

    Args:
        tried: The candidates; one that agrees wholly is among them wherever one prunes nothing.
        least_agreement: The agreement, 0 to 1, that a candidate must keep to be taken.

    Raises:
        ValueError: If no candidate keeps it.
    """
    kept = [i for i, one in enumerate(tried) if one.agreement >= least_agreement]
    return min(kept, key=lambda i: (round(tried[i].success - tried[i].agreement, 9), tried[i].pruned))
