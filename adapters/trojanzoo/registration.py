"""Puts methods of this plugin into TrojanZoo's own registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.registry import Catalogue, load_catalogue

from ..driving.program import run_as_program
from .importing import trojanvision


def register(catalogue: Catalogue | None = None) -> list[str]:
    """Make methods of this plugin known to ``--defense`` of TrojanZoo's scripts, before these parse their command line.

    Those that need no images, or benign ones; EP needs the poisoned training set, which TrojanZoo does not keep. Each has its
    options behind its name, such as ``--clp_u``.

    Args:
        catalogue: Catalogue that holds the methods; the usual one if None.

    Returns:
        Their names. Calling it again changes nothing.

    Raises:
        ConfigError: If TrojanZoo is not installed or cannot be imported, or has a defense of that name itself.
    """
    package = trojanvision()
    from .plugin_script import defense_class  # torch: not needed to refuse a mistake

    catalogue = catalogue if catalogue is not None else load_catalogue()
    registered = []
    for name in catalogue.names("defenses"):
        if catalogue.entry("defenses", name).budget == "poisoned":
            continue
        there = package.defenses.class_dict.get(name)
        if there is not None and not hasattr(there, "clp_plugin_method"):
            raise ConfigError(
                f"TrojanZoo has a defense {name!r} itself: {there.__module__}; nothing of that name was replaced"
            )
        package.defenses.class_dict[name] = defense_class(name, catalogue)
        registered.append(name)
    return registered


def run_script(script: Path, arguments: Sequence[str], *, catalogue: Catalogue | None = None) -> None:
    """Run one of TrojanZoo's scripts, unmodified, in this process, with the methods of this plugin registered.

    Args:
        script: A script of its users, such as ``examples/backdoor_defense.py`` of its repository.
        arguments: The script's own.
        catalogue: Catalogue that holds the methods; the usual one if None.

    Raises:
        ConfigError: If the script is missing, or TrojanZoo cannot be imported.
    """
    if not script.is_file():
        raise ConfigError(f"{script}: expected a script of TrojanZoo such as examples/backdoor_defense.py, found none")
    joined = [
        argument for argument in arguments if argument.startswith(("--defense=", "--attack=", "--dataset=", "--model="))
    ]
    if joined:
        raise ConfigError(f"{joined[0]}: TrojanZoo does not understand the sign =; give {joined[0].replace('=', ' ')}")
    run_as_program(script, arguments, prepare=lambda: register(catalogue))
