"""``NAME=VALUE`` on the command line, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clp_plugin.errors import ConfigError
from clp_plugin.files.reading import parse_yaml


def parse_options(given: Iterable[str], *, flag: str = "--option") -> dict[str, Any]:
    """Name to value; values are read as YAML scalars and lists, so ``3`` is a number and ``true`` a truth value.

    Args:
        given: The options as they were typed, each ``NAME=VALUE``.
        flag: The option that they were given by, for messages.

    Raises:
        ConfigError: If one is not ``NAME=VALUE``, or a name stands there twice.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{flag}: expected NAME=VALUE such as epochs=10, found {text!r}")
        if name in options:
            raise ConfigError(f"{flag}: {name!r} is given twice")
        options[name.strip()] = _value(name, value, flag)
    return options


def parse_numbers(text: str | None, *, flag: str) -> tuple[float, ...] | None:
    """``0.49,0.48,0.45`` as numbers; None stays None.

    Args:
        text: The numbers as they were typed.
        flag: The option that they were given by, for messages.

    Raises:
        ConfigError: If one is no number.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{flag}: expected one number, or one a channel such as 0.49,0.48,0.45; found {text!r}"
        ) from None


def _value(name: str, text: str, flag: str) -> Any:
    try:
        return parse_yaml(text) if text else ""
    except ValueError as error:
        raise ConfigError(f"{flag} {name}: cannot read the value {text!r}: {error}") from error
