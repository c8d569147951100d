"""What ``bench list toolboxes`` tells of BackdoorBox."""

from __future__ import annotations

from clp_plugin.records.exchange import ToolboxPresence

from ..driving.checkout import find_checkout, stored_commit
from .toolbox_facts import BACKDOORBOX, DEFENSES

_FAILS = {
    "its attacks by bench attack": "its users train by scripts of their own",
    "its other defenses by bench defend": "they filter inputs, train anew, or need files that a record does not hold",
}


def presence() -> ToolboxPresence:
    """Where it is, and what of it runs from here.

    Raises:
        ConfigError: If no checkout is found.
    """
    found = find_checkout(BACKDOORBOX)
    runs = ["records", f"defenses: {', '.join(DEFENSES)}", "CLP in its users' scripts"]
    return ToolboxPresence(found.root, found.found_by, stored_commit(found.root), runs, _FAILS)
