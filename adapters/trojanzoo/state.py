"""What of the installed TrojanZoo can be used here."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from clp_plugin.records.exchange import CheckoutState, ScriptState

from .importing import trojanvision

# Attacks that are in its registry, and fail or ask for more when they are made or stored.
_KNOWN: Mapping[str, str] = {
    "invisible_poison": "only with a mark as large as the image",
    "latent_backdoor": "only with --mark_random_init",
    "refool": "downloads Pascal VOC when it is made",
    "trojannet": "neither stores nor loads its trojan, which is a network of its own",
}


def check() -> CheckoutState:
    """Import it and list its registry.

    Raises:
        ConfigError: If TrojanZoo is not installed or cannot be imported.
    """
    package = trojanvision()
    version = importlib.metadata.version("trojanzoo")
    attacks = [ScriptState("attack", name, _KNOWN.get(name, "")) for name in sorted(package.attacks.class_dict)]
    defenses = [ScriptState("defense", name) for name in sorted(package.defenses.class_dict)]
    folder = Path(str(package.__file__)).parent
    return CheckoutState(folder, f"the installed package {version}", "", [*attacks, *defenses], registered=None)
