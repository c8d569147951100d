"""The whole search: images from BatchNorm statistics, both families of triggers, and whether one is worth acting on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clp_plugin.errors import ConfigError
from clp_plugin.surrogate.images import dead_leaves, require_statistics, synthesise
from clp_plugin.surrogate.inputs import remembered_pixel
from clp_plugin.surrogate.patch import WINDOW, refine_patch, search_patch
from clp_plugin.surrogate.pattern import search_pattern
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import Progress

MAX_CLASSES = 100  # more are thinned out before the search
_DARKEST = 0.05  # mean pixel of a data set
STAGES = 4  # of a search, which its progress counts


@dataclass(frozen=True)
class Gate:
    """When a surrogate is strong enough to act on. A hint, no verdict.

    Attributes:
        size: The largest side of a patch that counts as a trigger's.
        success: The least share of held-out synthetic images that it must send to its class.

    The defaults were read off one clean and one repaired network. On networks that took no part in it they let none pass of
    those without a working backdoor, and stopped a third of the backdoors: waves, warps and triggers all over the image, which
    no small patch stands for (docs/data-free.md).
    """

    size: int = 3
    success: float = 0.8

    def __post_init__(self) -> None:
        if not (self.size >= 1 and 0 < self.success <= 1):
            raise ConfigError(
                f"gate: expected a size of 1 or more and a success above 0 up to 1, found {self.size}, {self.success}"
            )

    def passes(self, patch: Surrogate) -> bool:
        """Whether the patch is small and successful enough."""
        return patch.size <= self.size and patch.success >= self.success

    def says(self, patch: Surrogate) -> str:
        """The finding in one line, with its numbers."""
        found = f"a patch of {patch.size}x{patch.size} sends {patch.success:.0%} of synthetic images to class {patch.target}"
        asked = f"{self.size}x{self.size} or less and {self.success:.0%} or more"
        if self.passes(patch):
            return f"hint of a backdoor, not validated: {found} (asked for: {asked})"
        return (
            f"no surrogate trigger of backdoor-like strength: at best {found} (asked for: {asked}); an all-to-all backdoor, or "
            "a trigger that is no small patch, is not ruled out"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What the search found, and the images that it used.

    Attributes:
        patch: The patch: its target is the suspected class.
        pattern: The added pattern.
        fit: Images that triggers were fitted on, ``(B, C, H, W)``, pixels in [0, 1].
        held_out: Images that success is measured on.
        like_training: Images synthesised with classes: agreement is measured on their logits.
        classes: Number of classes of the network.
        searched: The classes that were searched: all, or the ``MAX_CLASSES`` nearest ones.
        gate: The strength that the patch was asked for.
        rival: The patch of the next easiest class, if that was sought: where the first one is strong enough to act on.
        mean_pixel: Mean pixel of the training images as the weights tell it (:mod:`.inputs`); None if they do not.
    """

    patch: Surrogate
    pattern: Surrogate
    fit: Tensor
    held_out: Tensor
    like_training: Tensor
    classes: int
    searched: tuple[int, ...]
    gate: Gate
    rival: Surrogate | None = None
    mean_pixel: float | None = None

    @property
    def limits(self) -> list[str]:
        """What keeps the finding from being the whole truth on this network, a line each."""
        told = []
        if len(self.searched) < self.classes:
            told.append(
                f"{len(self.searched)} of {self.classes} classes were searched, those of the largest mean logit: another "
                "target would not show"
            )
        if self.rival is not None and self.gate.passes(self.rival):
            told.append(
                f"a patch as small sends {self.rival.success:.0%} of synthetic images to class {self.rival.target}: several "
                f"triggers, or a network that any patch sways; only class {self.patch.target} is followed"
            )
        if self.mean_pixel is not None and not _DARKEST < self.mean_pixel < 1 - _DARKEST:
            told.append(
                f"the first BatchNorm remembers images with a mean pixel of {self.mean_pixel:.2f}, which hardly any in [0, 1] "
                "have: the mean and std of the network's normalization seem to be others"
            )
        return told

    @property
    def accepted(self) -> bool:
        """Whether the patch is strong enough to act on."""
        return self.gate.passes(self.patch)

    @property
    def says(self) -> str:
        """The finding in one line, with its numbers."""
        return self.gate.says(self.patch)

    @property
    def agreeing(self) -> list[Surrogate]:
        """The patch, and the pattern if its search names the same class."""
        return [self.patch, *([self.pattern] if self.pattern.target == self.patch.target else [])]

    def to_json(self) -> dict[str, Any]:
        """The evidence, as plain JSON values for a log."""
        patch, pattern, rival = self.patch, self.pattern, self.rival
        return {
            "accepted": self.accepted,
            "target": patch.target,
            "finding": self.says,
            "patch": {"size": patch.size, "place": patch.place, "success": patch.success},
            "pattern": {"target": pattern.target, "norm": pattern.norm, "success": pattern.success},
            "rival": rival and {"target": rival.target, "size": rival.size, "success": rival.success},
            "losses": {str(label): loss for label, loss in sorted(patch.losses.items())},
            "limits": self.limits,
            "searched": len(self.searched),
            "classes": self.classes,
        }


def find_surrogates(
    network: PixelNetwork,
    input_shape: Sequence[int],
    *,
    gate: Gate | None = None,
    count: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """Synthesise images and search both families of triggers over all classes.

    Args:
        network: The network behind its normalization, in eval mode.
        input_shape: Shape of one image, ``(C, H, W)``.
        gate: The success that a patch is enlarged for; the defaults where it is not given.
        count: Number of images synthesised with classes, 10 or more; as many without, and half as many dead leaves again.
        seed: Seed of the images.
        progress: Called with the stages done and the stages in all.

    Raises:
        ConfigError: If the network has no BatchNorm statistics, or images that no 5x5 patch fits in twice.
    """
    require_searchable(network.network, input_shape)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, STAGES)

    gate = gate or Gate()
    like_training = synthesise(network, input_shape, count=count, seed=seed)
    tick()
    free = synthesise(network, input_shape, count=count, class_weight=0.0, seed=seed + 1000)
    tick()
    leaves = dead_leaves(count * 3 // 2, input_shape, seed=seed + 2000).to(network.device)
    parts = [(like_training, 0.7), (free, 0.7), (leaves, 2 / 3)]
    cuts = [math.floor(share * len(images)) for images, share in parts]
    fit = torch.cat([images[:cut] for (images, _), cut in zip(parts, cuts, strict=True)])
    held_out = torch.cat([images[cut:] for (images, _), cut in zip(parts, cuts, strict=True)])
    fit = fit[torch.randperm(len(fit), generator=torch.Generator().manual_seed(seed)).to(fit.device)]
    classes, searched = _searched(network, fit)
    pattern, patterns = search_pattern(network, fit, held_out, searched)
    tick()
    patch, follower = search_patch(network, fit, held_out, searched, patterns=patterns, success=gate.success)
    rival = None
    if gate.passes(patch) and follower is not None:
        side = min(WINDOW, *input_shape[1:])
        rival = refine_patch(
            network, fit, held_out, follower[0], places=[follower[1]], side=side, sizes=[min(gate.size, side)],
            losses=patch.losses, reach=0,
        )  # fmt: skip
    tick()
    return Found(
        patch, pattern, fit, held_out, like_training, classes, searched, gate, rival, remembered_pixel(network, fit)
    )


def require_searchable(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Refuse a network that no trigger can be sought in.

    Args:
        model: The bare network.
        input_shape: Shape of one image, ``(C, H, W)``.

    Raises:
        ConfigError: If the network has no BatchNorm statistics, or images that no 5x5 patch fits in twice.
    """
    require_statistics(model)
    if len(input_shape) != 3 or min(input_shape[1:]) < 6:
        raise ConfigError(
            f"a surrogate trigger needs images (C, H, W) of 6x6 pixels or more; found {tuple(input_shape)}"
        )


@torch.no_grad()
def _searched(network: PixelNetwork, images: Tensor) -> tuple[int, tuple[int, ...]]:
    """All classes; of very many those with the largest mean logit, which a backdoor's target tends to have."""
    means = network.logits(images).mean(0)
    nearest = means.topk(min(MAX_CLASSES, len(means))).indices
    return len(means), tuple(sorted(int(c) for c in nearest))
