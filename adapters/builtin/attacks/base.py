"""What an attack offers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import RecordError

Pixels = NDArray[np.uint8]


class Attack(Protocol):
    """A trigger and how it is put on images; which labels the attacker wants is told by a ``TargetRule``.

    The attacks here poison images one by one, before training. One that takes part in training (WaNet, IAB) can offer a
    further method, for :func:`~clp_plugin.adapters.builtin.training.train` to call on its batches as a ``BatchHook``.
    """

    @classmethod
    def create(cls, input_shape: tuple[int, int, int], *args: Any, **options: Any) -> Attack:
        """Make the trigger.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            *args: Never given; written so that an attack may name its options one by one.
            **options: ``seed``, always given, of whatever is random about the trigger; and the attack's own.

        Raises:
            ConfigError: If an option is impossible, such as a trigger larger than the image.
        """
        ...

    def poison(self, pixels: Pixels) -> Pixels:
        """A triggered copy of ``pixels``, ``(N, C, H, W)`` uint8."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All that is needed to poison again, as plain JSON values."""
        ...

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Attack:
        """Inverse of :meth:`to_json`.

        Raises:
            RecordError: If a key is missing or damaged.
        """
        ...


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
