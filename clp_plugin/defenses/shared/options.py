"""Checks of a defense's options."""

from __future__ import annotations

from clp_plugin.errors import ConfigError


def require_in_range(defense: object, *rules: tuple[str, bool, str]) -> None:
    """Refuse impossible options.

    Args:
        defense: The defense whose attributes they are.
        *rules: Attribute, whether it is fine, and what is expected.

    Raises:
        ConfigError: If an attribute is not fine; names the first.
    """
    for name, fine, expected in rules:
        if not fine:
            kind = type(defense).__name__.lower()
            raise ConfigError(f"{kind}: expected {name} {expected}, found {getattr(defense, name)!r}")


def is_count(value: object, least: int) -> bool:
    """Whether an option is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether an option is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
