"""What of the installed TrojanZoo can be used here."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from clp_plugin.records.exchange import CheckoutState, ScriptState

from .importing import trojanvision
from .toolbox_facts import FAILING_ATTACKS


def check() -> CheckoutState:
    """Import it and list its registry.

    Raises:
        ConfigError: If TrojanZoo is not installed or cannot be imported.
    """
    package = trojanvision()
    version = importlib.metadata.version("trojanzoo")
    attacks = [
        ScriptState("attack", name, FAILING_ATTACKS.get(name, "")) for name in sorted(package.attacks.class_dict)
    ]
    defenses = [ScriptState("defense", name) for name in sorted(package.defenses.class_dict)]
    folder = Path(str(package.__file__)).parent
    return CheckoutState(folder, f"the installed package {version}", "", [*attacks, *defenses], registered=None)
