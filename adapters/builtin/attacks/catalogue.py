"""The attacks by name, for records that are read again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from clp_plugin.errors import ConfigError, unknown_name

from .badnets import BadNets
from .base import Attack
from .blended import Blended
from .cla import CLA
from .iab.attack import IAB
from .sig import SIG
from .ssba.attack import SSBA
from .trojan import Trojan
from .wanet import WaNet

ATTACKS: Mapping[str, type[Attack]] = {
    "badnets": BadNets,
    "blended": Blended,
    "trojan": Trojan,
    "cla": CLA,
    "sig": SIG,
    "wanet": WaNet,
    "iab": IAB,
    "ssba": SSBA,
}
_ALWAYS_GIVEN = ("input_shape", "seed")


def attack_class(name: str) -> type[Attack]:
    """The class behind a name.

    Raises:
        ConfigError: If no attack has that name.
    """
    if name not in ATTACKS:
        raise ConfigError(unknown_name("attack", name, ATTACKS))
    return ATTACKS[name]


def create_attack(
    name: str,
    input_shape: tuple[int, int, int],
    *,
    seed: int,
    options: Mapping[str, Any],
    attack_type: type[Attack] | None = None,
) -> Attack:
    """Make an attack with its own options.

    Args:
        name: A key of ``ATTACKS``, or any name for an ``attack_type`` that is not one of ours.
        input_shape: ``(C, H, W)`` of the images.
        seed: Seed of the trigger.
        options: Options of the attack's ``create``.
        attack_type: The class, where the name is not a key of ``ATTACKS``.

    Raises:
        ConfigError: If the name or an option is unknown, an option's value is impossible, or the class is no attack.
    """
    attack = attack_type or attack_class(name)
    if not (inspect.isclass(attack) and issubclass(attack, Attack)):
        raise ConfigError(f"attack {name!r}: expected a subclass of {Attack.__module__}.Attack, found {attack!r}")
    known = [parameter for parameter in inspect.signature(attack.create).parameters if parameter not in _ALWAYS_GIVEN]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of attack {name!r}", option, known))
    try:
        return attack.create(input_shape, seed=seed, **options)
    except TypeError as error:
        raise ConfigError(
            f"attack {name!r}: an option has a value of the wrong type: {dict(options)} ({error})"
        ) from error
