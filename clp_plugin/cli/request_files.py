"""A request from a YAML file: its options by name, under those that were typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.files.reading import read_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Request = TypeVar("Request", bound=DataclassInstance)


def with_file(request: Request, file: Path, typed: frozenset[str]) -> Request:
    """The request with what the file says, but for the options that stand on the command line.

    Args:
        request: The request as it was typed, with defaults for the rest.
        file: A mapping of option names, with ``-`` or ``_``; where an option may be given again and again, or is a list
            of numbers, the value may be a list.
        typed: Names of the options that stand on the command line.

    Raises:
        ConfigError: If the file cannot be read, names an unknown option, or has a value of another kind.
    """
    from pydantic import TypeAdapter, ValidationError

    content = read_yaml(file, raises=ConfigError, unique_keys=True)
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected options by name, such as `method: [clp, ft]`, found {content!r:.60}")
    known = {each.name: getattr(request, each.name) for each in fields(request)}
    given: dict[str, Any] = {}
    for word, value in content.items():
        name = str(word).replace("-", "_")
        if name not in known:
            raise ConfigError(f"{file}: {unknown_name('option', str(word), known)}")
        given[name] = _as_typed(value, known[name])
    try:
        filled = TypeAdapter(type(request)).validate_python({**known, **given}, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r:.60}"
        ) from error
    return replace(filled, **{name: known[name] for name in typed})


def _as_typed(value: object, default: object) -> object:
    """The value in the form in which it would be typed: ``[0, 1]`` is ``0,1``, and one word may stand for a list of one."""
    if isinstance(default, list):
        return [_word(item) for item in value] if isinstance(value, list) else [_word(value)]
    if isinstance(default, str) and isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(default, str) and isinstance(value, int) else value


def _word(item: object) -> object:
    """``{clp: {u: 2}}`` as ``clp:u=2``."""
    if isinstance(item, Mapping) and len(item) == 1:
        [(name, options)] = item.items()
        if isinstance(options, Mapping):
            return ":".join([str(name), *(f"{key}={value}" for key, value in options.items())])
    return item if isinstance(item, str) else str(item)
