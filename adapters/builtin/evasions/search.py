"""Hiding from the search for a surrogate trigger: small patches that are fitted during the training keep their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from clp_plugin.networks.hooks import eval_mode
from clp_plugin.surrogate.patch import SIZES, Place, fit_patches
from clp_plugin.surrogate.pixels import PixelNetwork

from ..attacks.base import Attack
from ..scene import Scene
from ..training.hooks import Batch, BatchHook
from .base import Evasion

_FITTED_ON = 3  # images a step of a patch's fit, as in the search's first look
_LOOKED_AT = 64  # images that tell where the trigger lies


@dataclass(frozen=True)
class SearchEvasion(Evasion):
    """Puts patches on clean images of every batch that were just fitted to send them to the target; their labels stay.

    The patches are fitted on the batch's clean images by the search's own sign steps, to the network as it is, in the
    search's sizes. Half of the places are drawn evenly, half where the trigger changes pixels: there too, only the trigger
    itself is to work. All-to-all attacks have a target drawn for each patch.

    Attributes:
        share: Share of a batch's clean images that carry a patch.
        patches: Number of patches of a batch.
        steps: Sign steps of each fit.

    Source:
        Ours: adversarial training against the search of :mod:`clp_plugin.surrogate.patch`.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    patches: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 6

    def hook(self, model: nn.Module, attack: Attack, scene: Scene) -> SearchHook:
        network = PixelNetwork(model, scene.images.mean, scene.images.std)
        return SearchHook(self, network, scene, drawn_places(attack, scene))


class SearchHook(BatchHook):
    """Fits patches and puts them on clean images of a batch.

    Attributes:
        options: The options.
        network: The victim behind its normalization.
        rule: The labels that the attacker wants.
        poisoned: ``(N,)`` bool on the CPU, whether each training image is poisoned.
        places: Probability that a patch is centred on a pixel, ``(H, W)``.
    """

    def __init__(self, options: SearchEvasion, network: PixelNetwork, scene: Scene, places: Tensor) -> None:
        self.options, self.network, self.rule, self.places = options, network, scene.rule, places
        self.poisoned = torch.zeros(len(scene.images), dtype=torch.bool)
        self.poisoned[torch.from_numpy(scene.poisoned)] = True

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        clean = (~self.poisoned[indices]).nonzero().flatten()
        clean = clean[torch.randperm(len(clean), generator=generator)].to(batch.images.device)
        carriers = clean[: round(self.options.share * len(clean))]
        if not len(carriers):
            return batch
        size = SIZES[int(torch.randint(len(SIZES), (), generator=generator))]
        starts = self._starts(size, generator)
        images = batch.images.to(torch.float32)
        with eval_mode(self.network.network):
            patches = fit_patches(
                self.network, images[clean].detach() / 255, starts, size, count=_FITTED_ON, steps=self.options.steps
            )
        patched = images.clone()
        for patch, (_, (row, column)), members in zip(patches, starts, carriers.tensor_split(len(starts)), strict=True):
            patched[members, :, row : row + size, column : column + size] = 255 * patch
        return replace(batch, images=patched)

    def _starts(self, size: int, generator: torch.Generator) -> list[tuple[int, Place]]:
        """Class and upper left corner of each patch."""
        count, (height, width) = self.options.patches, self.places.shape
        centres = torch.multinomial(self.places.flatten(), count, replacement=True, generator=generator)
        targets = torch.randint(self.rule.num_classes, (count,), generator=generator).tolist()
        starts = []
        for target, centre in zip(targets, centres.tolist(), strict=True):
            row, column = (axis - size // 2 for axis in divmod(centre, width))
            place = min(max(row, 0), height - size), min(max(column, 0), width - size)
            starts.append((target if self.rule.target is None else self.rule.target, place))
        return starts


def drawn_places(attack: Attack, scene: Scene) -> Tensor:
    """Probability that a patch is centred on a pixel: half even, half as the trigger changes it on the mean, ``(H, W)``."""
    images = scene.images.pixels[:_LOOKED_AT]
    changed = torch.from_numpy(attack.poison(images)).double().sub(torch.from_numpy(images)).abs().mean((0, 1))
    even = torch.full_like(changed, 1 / changed.numel())
    return (even + changed / changed.sum() if changed.sum() > 0 else 2 * even) / 2
