"""The interface of an evasion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from ..attacks.base import Attack
    from ..scene import Scene
    from ..training.hooks import BatchHook


class Evasion(ABC):
    """What an attacker who controls the training adds to it, so that a defense does not see the backdoor.

    It is a frozen dataclass of its options, all with defaults; ``catalogue.create_evasion`` holds them to their annotations.
    """

    @abstractmethod
    def hook(self, model: nn.Module, attack: Attack, scene: Scene) -> BatchHook:
        """The part of the training that hides the backdoor.

        Args:
            model: The victim, which is trained in place while the hook watches it.
            attack: The attack that is to be hidden, prepared.
            scene: The training images and what else the attacker has.
        """
