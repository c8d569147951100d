"""What ``bench list toolboxes`` tells of TrojanZoo."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import ToolboxPresence

from .importing import NOT_INSTALLED

# Attacks that are in its registry, and fail or ask for more when they are made or stored.
FAILING_ATTACKS: Mapping[str, str] = {
    "invisible_poison": "only with a mark as large as the image",
    "latent_backdoor": "only with --mark_random_init",
    "refool": "downloads Pascal VOC when it is made",
    "trojannet": "neither stores nor loads its trojan, which is a network of its own",
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
    runs = ["records", "our methods in its scripts"]
    return ToolboxPresence(Path(found.origin).parent, "the installed package", version, runs, FAILING_ATTACKS)
