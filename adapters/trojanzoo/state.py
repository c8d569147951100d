"""What of the installed TrojanZoo can be used here."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from clp_plugin.records.exchange import CheckoutState, ScriptState

from .importing import trojanvision
from .toolbox_facts import FAILING_ATTACKS, FAILING_DEFENSES


def check() -> CheckoutState:
    """Import it and list its registry.

    Raises:
        ConfigError: If TrojanZoo is not installed or cannot be imported.
    """
    package = trojanvision()
    version = importlib.metadata.version("trojanzoo")
    registries = (
        ("attack", package.attacks.class_dict, FAILING_ATTACKS),
        ("defense", package.defenses.class_dict, FAILING_DEFENSES),
    )
    states = [
        ScriptState(kind, name, fails.get(name, "")) for kind, known, fails in registries for name in sorted(known)
    ]
    folder = Path(str(package.__file__)).parent
    return CheckoutState(folder, f"the installed package {version}", "", states, registered=None)
