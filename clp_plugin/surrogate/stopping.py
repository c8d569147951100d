"""How far to prune: the mask that takes most from the surrogate triggers for the least of what the network says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clp_plugin.masking.apply import apply_mask
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import Mask, Progress

ENOUGH = 0.2  # success at which a surrogate counts as gone


@dataclass(frozen=True)
class Tried:
    """One candidate mask and what it does on synthetic images.

    Attributes:
        pruned: Number of channels that it prunes.
        success: The largest success that is left to a surrogate.
        agreement: Agreement of the logits of synthetic images with those before (:func:`agreement`).
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
    before: Tensor | None = None,
    progress: Progress | None = None,
) -> list[Tried]:
    """Measure each mask; the network is as before afterwards.

    Args:
        network: The network behind its normalization.
        masks: The candidates.
        surrogates: The triggers, at least one.
        held_out: Images that success is measured on.
        like_training: Images that agreement is measured on.
        before: Logits of these, ``(B, classes)``, to agree with; by default those of the network as it is.
        progress: Called with the masks done and the masks in all.
    """
    own = network.classes(held_out)
    before = network.answers(like_training) if before is None else before
    found = []
    for done, mask in enumerate(masks, start=1):
        with apply_mask(network.network, mask):
            success = max(one.success_on(network, held_out, own) for one in surrogates)
            same = agreement(network, like_training, before)
        found.append(Tried(len(mask), success, same))
        if progress is not None:
            progress(done, len(masks))
    return found


def agreement(network: PixelNetwork, images: Tensor, before: Tensor) -> float:
    """How alike a network's logits are to those before: the mean over images of the cosine of both, each less its mean.

    It falls before any image changes its class: synthetic images are so sure of themselves that they keep it where real ones
    no longer do.

    Args:
        network: The network behind its normalization.
        images: ``(B, C, H, W)``, pixels in [0, 1].
        before: Logits of the images before, ``(B, classes)``.

    Returns:
        A number in [-1, 1]; 1 where nothing changed but the scale or a constant of an image's logits.

    Source:
        Ours. Of the measures that were tried it follows the accuracy on real images best (docs/data-free.md).
    """
    now, then = (x.double() - x.double().mean(1, keepdim=True) for x in (network.answers(images), before))
    return round(float(F.cosine_similarity(now, then, dim=1).mean()), 9)  # not a last bit below 1


def best_stop(tried: Sequence[Tried], *, least_agreement: float = 0.0, enough: float = ENOUGH) -> int:
    """Position of the smallest mask that leaves the surrogates no more than ``enough``.

    Where none does, of the candidate with the largest fall of success minus fall of agreement, and of equal ones of the
    smallest mask. A few images more or less of what is left say nothing of the true trigger, but each channel costs.

    Args:
        tried: The candidates.
        least_agreement: The agreement, 0 to 1, that a candidate must keep to be taken, unless it prunes nothing.
        enough: The success, 0 to 1, at which a surrogate counts as gone.

    Raises:
        ValueError: If no candidate may be taken.
    """

    def worth(i: int) -> tuple[bool, float, int]:
        one = tried[i]
        gone = one.success <= enough
        return not gone, 0.0 if gone else round(one.success - one.agreement, 9), one.pruned

    kept = [i for i, one in enumerate(tried) if one.pruned == 0 or one.agreement >= least_agreement]
    return min(kept, key=worth)
