"""The evasions by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.files.option_values import parse_options

from .base import Evasion
from .search import SearchEvasion
from .sigma import SigmaEvasion

EVASIONS: Mapping[str, type[SigmaEvasion | SearchEvasion]] = {"sigma": SigmaEvasion, "search": SearchEvasion}


def create_evasion(name: str, options: Mapping[str, Any]) -> Evasion:
    """Make an evasion with its own options.

    Raises:
        ConfigError: If the name or an option is unknown, or an option's value is impossible.
    """
    if name not in EVASIONS:
        raise ConfigError(unknown_name("evasion", name, EVASIONS))
    known = [field.name for field in fields(EVASIONS[name])]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of evasion {name!r}", option, known))
    try:
        return TypeAdapter(EVASIONS[name]).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"evasion {name!r}: {first['loc'][0]}: {first['msg']}, found {first['input']!r}") from error


def parse_evasions(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name to all options of each evasion, as settings hold them.

    Args:
        given: The evasions as they were typed, each ``NAME[:OPTION=VALUE]...``; values are read as YAML.

    Raises:
        ConfigError: If one is impossible or stands there twice.

    Example:
        >>> parse_evasions(["sigma:bound=2"])
        {'sigma': {'weight': 0.03, 'bound': 2}}
    """
    evasions: dict[str, dict[str, Any]] = {}
    for text in given:
        name, *options = text.split(":")
        if name in evasions:
            raise ConfigError(f"--evade: {name!r} is given twice")
        evasions[name] = vars(create_evasion(name, parse_options(options, flag=f"--evade {text}")))
    return evasions
