"""What ``bench list toolboxes`` tells of backdoor-toolbox."""

from __future__ import annotations

from clp_plugin.records.exchange import ToolboxPresence

from ..driving.checkout import find_checkout, stored_commit
from .toolbox_facts import BACKDOOR_TOOLBOX, DEFENSES

_FAILS = {
    "its attacks by bench attack": "its own scripts make them",
    "its other defenses by bench defend": "they filter images or train anew; its own other_defense.py runs them, on a GPU",
}


def presence() -> ToolboxPresence:
    """Where it is, and what of it runs from here.

    Raises:
        ConfigError: If no checkout is found.
    """
    found = find_checkout(BACKDOOR_TOOLBOX)
    runs = ["records", f"defenses: {', '.join(DEFENSES)}", "CLP as a script beside its own"]
    return ToolboxPresence(found.root, found.found_by, stored_commit(found.root), runs, _FAILS)
