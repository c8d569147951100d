"""The facts on BackdoorBox that driving any checkout needs."""

from __future__ import annotations

from ..driving.checkout import CheckoutFacts

LAUNCHER = "clp_plugin.adapters.backdoorbox.launcher"
BACKDOORBOX = CheckoutFacts(
    name="backdoorbox",
    title="BackdoorBox",
    variable="BACKDOORBOX_ROOT",
    marks=("core/attacks/base.py", "core/defenses/base.py", "core/utils/test.py"),
    source="https://github.com/THUYimingLi/BackdoorBox",
    tested="af3afd1c0b172cbf4b0f8c030a9afa0fecc13fc1",
)
