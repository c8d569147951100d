"""Finding out which scripts of a checkout start: each is imported in a child process with the bridges in place."""

from __future__ import annotations

from clp_plugin.records.exchange import CheckoutState, ScriptState

from ..driving.checkout import Checkout, commit_of
from ..driving.trials import state_of, tried
from . import toolbox_facts
from .defenses import DEFENSES
from .registration import is_registered
from .surroundings import backdoorbench_workspace


def check(checkout: Checkout) -> CheckoutState:
    """Try every script.

    Raises:
        ConfigError: If the child process itself fails.
    """
    root = checkout.root
    scripts = {facts.script: ("defense", name) for name, facts in DEFENSES.items() if (root / facts.script).is_file()}
    scripts |= {f"attack/{name}.py": ("attack", name) for name in toolbox_facts.attack_names(root)}
    with backdoorbench_workspace(root) as place:
        errors = tried([toolbox_facts.LAUNCHER, "check", *scripts], place, root=root)
    states = [_state(kind, name, errors.get(script)) for script, (kind, name) in scripts.items()]
    return CheckoutState(root, checkout.found_by, commit_of(root), states, is_registered(root))


def _state(kind: str, name: str, error: str | None) -> ScriptState:
    known = toolbox_facts.FAILING_ATTACKS.get(name) if kind == "attack" else None
    return state_of(kind, name, error or known)
