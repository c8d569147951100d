"""Reading a script's options and its configuration from the files, without running them."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.files.reading import read_text, read_yaml


@dataclass(frozen=True)
class Declared:
    """One option of a script.

    Attributes:
        flag: Whether it takes no value.
        has_default: Whether argparse has a default of its own, which silently wins over the configuration file.
    """

    flag: bool
    has_default: bool


def declared_options(script: Path, *others: Path) -> dict[str, Declared]:
    """Long options that a script, or a module that it builds on, declares; names without dashes.

    Raises:
        ConfigError: If a file cannot be read as Python.
    """
    found: dict[str, Declared] = {}
    for path in (*others, script):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about their code: users can do nothing
                tree = ast.parse(read_text(path, raises=ConfigError))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the latter two: nested too deeply
            raise ConfigError(f"cannot read {path} as Python: {error}; is the checkout whole?") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                found |= _declared(node)
    return found


def _declared(call: ast.Call) -> dict[str, Declared]:
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    facts = {keyword.arg: keyword.value for keyword in call.keywords}
    action, default = facts.get("action"), facts.get("default")
    flag = isinstance(action, ast.Constant) and str(action.value).startswith("store_")
    own = default is not None and not (isinstance(default, ast.Constant) and default.value is None)
    return {name[2:]: Declared(flag, own) for name in names if name.startswith("--")}


def read_configuration(path: Path) -> dict[str, Any]:
    """A configuration file of the toolbox.

    Raises:
        ConfigError: If it cannot be read or holds no names.
    """
    content = read_yaml(path, raises=ConfigError)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected names with values, found {content!r}")
    return {str(key): value for key, value in content.items()}


def command_line(script: str, declared: Mapping[str, Declared], options: Mapping[str, object]) -> list[str]:
    """``--name value`` for each option.

    Raises:
        ConfigError: If the script has no such option.
    """
    arguments: list[str] = []
    for name, value in options.items():
        if name not in declared:
            raise ConfigError(f"{script}: {unknown_name('option', name, declared)}")
        if declared[name].flag:
            arguments += [f"--{name}"] if value else []
        elif value is not None:
            arguments += [f"--{name}", _text(value)]
    return arguments


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
