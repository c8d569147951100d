"""What of a checkout of BackdoorBox can be imported here."""

from __future__ import annotations

from clp_plugin.records.exchange import CheckoutState

from ..driving.checkout import Checkout, commit_of
from ..driving.trials import state_of, tried_modules
from .importing import PACKAGE, PARTS

_ATTEMPT = "clp_plugin.adapters.backdoorbox.importing:try_module"
_NO_METHODS = ("__init__", "base")


def check(checkout: Checkout) -> CheckoutState:
    """Import every attack and defense.

    Raises:
        ConfigError: If the child process itself fails.
    """
    root = checkout.root
    modules = [
        f"{part}.{file.stem}"
        for part in PARTS
        for file in sorted((root / PACKAGE / part).glob("*.py"))
        if file.stem not in _NO_METHODS
    ]
    errors = tried_modules(_ATTEMPT, modules, root)
    states = [state_of(name.split(".")[0].removesuffix("s"), name.split(".")[1], errors.get(name)) for name in modules]
    return CheckoutState(root, checkout.found_by, commit_of(root), states, registered=None)
