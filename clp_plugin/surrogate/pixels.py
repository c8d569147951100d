"""A network that takes pixels in [0, 1], whatever normalization it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.networks.devices import device_of
from clp_plugin.networks.outputs import logits_of

_BATCH = 512


@dataclass(frozen=True, eq=False)
class PixelNetwork:
    """The network, in eval mode, behind its normalization: every search of this room works on pixels in [0, 1].

    Attributes:
        network: The bare network; it is never changed.
        mean: Mean of its normalization, per channel, on the [0, 1] scale; zeros for a network that takes [0, 1].
        std: Standard deviation of its normalization, per channel, on the [0, 1] scale; ones likewise.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return device_of(self.network)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits ``(B, classes)`` in float32 of pixels ``(B, C, H, W)``, with a gradient."""
        return logits_of(self.network(self.normalized(pixels))).float()

    def normalized(self, pixels: Tensor) -> Tensor:
        """What the bare network takes for pixels ``(B, C, H, W)``, in the precision of its weights."""
        stored = next(self.network.parameters())
        shape = (1, -1, *[1] * (pixels.ndim - 2))
        mean, std = (torch.tensor(values, device=pixels.device).reshape(shape) for values in (self.mean, self.std))
        return ((pixels - mean) / std).to(stored.dtype)

    @torch.no_grad()
    def classes(self, pixels: Tensor) -> Tensor:
        """Class of every image, ``(B,)``."""
        return self.answers(pixels).argmax(1)

    @torch.no_grad()
    def answers(self, pixels: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of any number of images, without a gradient."""
        return torch.cat([self.logits(part) for part in pixels.split(_BATCH)])

    @torch.no_grad()
    def cross_entropy(self, pixels: Tensor, target: int) -> float:
        """Mean cross-entropy of the target class."""
        logits = self.answers(pixels)
        return float(F.cross_entropy(logits, torch.full((len(logits),), target, device=logits.device)))


def margin(logits: Tensor, wanted: Tensor) -> Tensor:
    """Logit of the wanted class minus the logsumexp of all others, ``(B,)``."""
    own = logits.gather(1, wanted[:, None])
    others = logits.scatter(1, wanted[:, None], float("-inf"))
    return own[:, 0] - others.logsumexp(1)


def shortfall(logits: Tensor, wanted: Tensor) -> Tensor:
    """The loss of the searches, ``(B,)``: a softened hinge that asks for a margin of 2."""
    return F.softplus(2.0 - margin(logits, wanted))


def sent(classes: Tensor, target: int, own: Tensor) -> float:
    """Share of the images whose own class is not the target that are taken for it; 0 where there is none."""
    counted = own != target
    return float((classes[counted] == target).double().mean()) if bool(counted.any()) else 0.0


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value a channel, repeated where a single one is given."""
    return tuple(values) * channels if len(values) == 1 else tuple(values)
