"""What ``bench list toolboxes`` tells of BackdoorBench."""

from __future__ import annotations

from clp_plugin.records.exchange import ToolboxPresence

from ..driving.checkout import find_checkout, stored_commit
from .defenses import DEFENSES
from .toolbox_facts import BACKDOORBENCH, FAILING_ATTACKS, attack_names


def presence() -> ToolboxPresence:
    """Where it is, and the scripts that it has.

    Raises:
        ConfigError: If no checkout is found.
    """
    found = find_checkout(BACKDOORBENCH)
    attacks = attack_names(found.root)
    running = [name for name in attacks if name not in FAILING_ATTACKS]
    defenses = [name for name, facts in DEFENSES.items() if (found.root / facts.script).is_file()]
    return ToolboxPresence(
        found.root,
        found.found_by,
        stored_commit(found.root),
        runs=[
            "records",
            f"attacks: {', '.join(running)}",
            f"defenses: {', '.join(defenses)}",
            "CLP among its defenses",
        ],
        fails={name: reason for name, reason in FAILING_ATTACKS.items() if name in attacks},
    )
