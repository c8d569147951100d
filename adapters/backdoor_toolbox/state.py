"""What of a checkout of backdoor-toolbox can be imported here."""

from __future__ import annotations

import torch

from clp_plugin.records.exchange import CheckoutState, ScriptState

from ..driving.checkout import Checkout, commit_of
from ..driving.registration import is_ours
from ..driving.trials import state_of, tried_modules
from .toolbox_facts import MODULES, SCRIPT

_ATTEMPT = "importlib:import_module"
_FOLDERS = {"poison_tool_box": "attack", "other_defenses_tool_box": "defense", "cleansers_tool_box": "defense"}
_NO_METHODS = ("__init__", "backdoor_defense", "tools")


def check(checkout: Checkout) -> CheckoutState:
    """Import every attack, defense and cleanser.

    Raises:
        ConfigError: If the child process itself fails.
    """
    root = checkout.root
    modules = {
        f"{folder}.{file.stem}": kind
        for folder, kind in _FOLDERS.items()
        for file in sorted((root / folder).glob("*.py"))
        if file.stem not in _NO_METHODS
    }
    errors = tried_modules(_ATTEMPT, list(modules), root)
    states = [_state(kind, name, errors.get(name)) for name, kind in modules.items()]
    return CheckoutState(root, checkout.found_by, commit_of(root), states, is_ours(root / SCRIPT))


def _state(kind: str, module: str, error: str | None) -> ScriptState:
    """A defense that can be imported still needs a GPU, to which the toolbox moves every network, but where we run it."""
    name = module.partition(".")[2]
    alone = "can be imported, but moves its network to a GPU, and there is none"
    needs_gpu = kind == "defense" and name not in MODULES.values() and not torch.cuda.is_available()
    return state_of(kind, name, error or (alone if needs_gpu else None))
