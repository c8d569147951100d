"""A surrogate trigger: the smallest change found that sends synthetic images to one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clp_plugin.surrogate.pixels import PixelNetwork, sent

Family = Literal["pattern", "patch"]


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A change of pixels that was sought, not one that an attacker is known to use.

    Attributes:
        family: ``pattern`` (added to the whole image) or ``patch`` (put in the place of a square of it).
        target: The class that it sends images to: the one that was easiest to reach.
        values: ``(C, H, W)`` change of a pattern, or ``(C, size, size)`` pixels of a patch, on the [0, 1] scale.
        place: Row and column of a patch's upper left corner; None for a pattern.
        success: Share of the held-out synthetic images of other classes that it sends to the target.
        losses: Class to mean cross-entropy at the search's end: the table that the target was chosen from. Classes that
            were not searched are absent.
    """

    family: Family
    target: int
    values: Tensor
    place: tuple[int, int] | None
    success: float
    losses: dict[int, float]

    @property
    def size(self) -> int:
        """The number of rows of the values: a patch's side, or an image's height."""
        return int(self.values.shape[1])

    @property
    def norm(self) -> float:
        """L2 norm of the values, on the [0, 1] scale: the size of a pattern."""
        return float(self.values.norm())

    def attach(self, images: Tensor) -> Tensor:
        """The images ``(B, C, H, W)``, pixels in [0, 1], with the trigger; a new tensor."""
        values = self.values.to(images.device)
        if self.place is None:
            return (images + values).clamp(0, 1)
        row, column = self.place
        changed = images.clone()
        changed[:, :, row : row + self.size, column : column + self.size] = values
        return changed

    def success_on(self, network: PixelNetwork, images: Tensor, own: Tensor) -> float:
        """Share of the images whose own class ``(B,)`` is not the target that a network takes for it."""
        return sent(network.classes(self.attach(images)), self.target, own)
