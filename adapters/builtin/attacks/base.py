"""The interface of an attack."""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from ..scene import Scene
    from ..training.hooks import BatchHook

Pixels = NDArray[np.uint8]


class Attack(ABC):
    """A trigger and how it is put on images; which labels the attacker wants is told by a ``TargetRule``.

    The life of an attack: :meth:`create` with its options, :meth:`prepare` with the training images, then
    :meth:`perturb` and :meth:`poison` on the images to be trained on or a :meth:`hook` that takes part in the training, and
    :meth:`poison` on test images. What is stored is the attack after all of that.

    Attributes:
        keeps_labels: A clean-label attack: it poisons images of the target class only, and their labels stay.
        needs_victim: The trigger is trained with the victim, so that without poisoned images there is none.
    """

    keeps_labels: ClassVar[bool] = False
    needs_victim: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def create(cls, input_shape: tuple[int, int, int], *args: Any, **options: Any) -> Attack:
        """Make the trigger.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            *args: Never given; written so that an attack may name its options one by one.
            **options: ``seed``, always given, of whatever is random about the trigger; and the attack's own.

        Raises:
            ConfigError: If an option is impossible, such as a trigger larger than the image.
        """

    @abstractmethod
    def poison(self, pixels: Pixels) -> Pixels:
        """A triggered copy of ``pixels``, ``(N, C, H, W)`` uint8, as at test time."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All that is needed, with :meth:`arrays`, to poison again, as plain JSON values."""

    @classmethod
    @abstractmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Attack:
        """Inverse of :meth:`to_json` and :meth:`arrays`.

        Raises:
            RecordError: If a key is missing or damaged.
        """

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parts of the trigger that are too large for JSON, such as the weights of a generator."""
        return {}

    def prepare(self, scene: Scene) -> Attack:
        """The attack made ready for these images: a trigger optimised, a generator trained."""
        del scene
        return self

    def perturb(self, pixels: Pixels) -> Pixels:
        """Change images to be poisoned, ``(N, C, H, W)`` uint8, before they are cropped, flipped and triggered."""
        return pixels

    def hook(self, scene: Scene) -> BatchHook | None:
        """The hook of an attack that takes part in the training; the training images then come to it as they are."""
        del scene
        return None


def patch_size(input_shape: tuple[int, int, int]) -> int:
    """Pixels a side of a patch: 3, and 5 for images of 64 pixels or more (CLP 5.1: CIFAR-10, Tiny ImageNet)."""
    return 5 if min(input_shape[1:]) >= 64 else 3


def fitting_patch_size(attack: str, input_shape: tuple[int, int, int], size: int | None, inset: int) -> int:
    """``size``, or the usual one where that is None, of a patch that leaves ``inset`` pixels to the image's edges.

    Raises:
        ConfigError: If such a patch does not fit into the image.
    """
    size = patch_size(input_shape) if size is None else size
    height, width = input_shape[1:]
    if size < 1 or inset < 0 or size + inset > min(height, width):
        raise ConfigError(
            f"{attack}: a patch of size {size} with inset {inset} does not fit into {height}x{width} images; "
            f"give a size from 1 to {min(height, width) - max(inset, 0)}"
        )
    return size


def require_counts(attack: str, **counts: int | None) -> None:
    """Whole numbers of at least 1, or None where the attack has its own.

    Raises:
        ConfigError: If one is not.
    """
    for name, value in counts.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{attack}: expected {name} of at least 1, found {value!r}; give a whole number")


def pattern_to_json(pattern: Pixels) -> dict[str, Any]:
    """``{"shape": [...], "base64": "..."}``: exact, independent of any random generator, and short."""
    return {"shape": list(pattern.shape), "base64": base64.b64encode(pattern.tobytes()).decode("ascii")}


def pattern_from_json(data: Any) -> Pixels:
    """Inverse of :func:`pattern_to_json`.

    Raises:
        RecordError: If the bytes do not fill the shape.
    """
    try:
        raw = base64.b64decode(data["base64"], validate=True)
        return np.frombuffer(raw, dtype=np.uint8).reshape(data["shape"]).copy()
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RecordError(f"trigger pattern: expected 'shape' and 'base64' that fit each other ({error})") from error
