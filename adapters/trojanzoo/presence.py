"""What ``bench list toolboxes`` tells of TrojanZoo."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import ToolboxPresence

from .importing import NOT_INSTALLED
from .toolbox_facts import DEFENSES, FAILING_ATTACKS, FAILING_DEFENSES

_FAILS = {
    "its attacks by bench attack": "its own scripts make them",
    "its other defenses by bench defend": "they look for triggers or filter images, and leave the network as it is",
}


def presence() -> ToolboxPresence:
    """The installed package, which is not imported.

    Raises:
        ConfigError: If it is not installed.
    """
    found = importlib.util.find_spec("trojanvision")
    if found is None or found.origin is None:
        raise ConfigError(NOT_INSTALLED)
    try:
        version = importlib.metadata.version("trojanzoo")
    except importlib.metadata.PackageNotFoundError:  # a folder on the path, not installed
        version = ""
    runs = ["records", f"defenses: {', '.join(DEFENSES)}", "our methods in its scripts"]
    fails = {**_FAILS, **FAILING_ATTACKS, **FAILING_DEFENSES}
    return ToolboxPresence(Path(found.origin).parent, "the installed package", version, runs, fails)
