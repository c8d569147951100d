"""The facts on BackdoorBench that driving any checkout of scripts needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..driving.checkout import CheckoutFacts

# Where BackdoorBench is looked for unless the user names a place, and where its data sets are.
ROOT_VARIABLE = "BACKDOORBENCH_ROOT"
# The module that runs one of its scripts in the child process.
LAUNCHER = "clp_plugin.adapters.backdoorbench.launcher"
BACKDOORBENCH = CheckoutFacts(
    name="backdoorbench",
    title="BackdoorBench",
    variable=ROOT_VARIABLE,
    marks=("attack", "defense", "utils/save_load_attack.py"),
    source="https://github.com/SCLBD/BackdoorBench",
    tested="f02e3534645f0ee63d6848653062cd6c0d6c400d",
    # Notebooks and a second toolbox: 100 MB that nothing here needs, and that some mirrors lack.
    left_out=("/analysis/Demos/", "/backdoorbench_nlp/"),
)
# Attacks that start, and fail later for reasons of their own.
FAILING_ATTACKS: Mapping[str, str] = {
    "trojannn": "needs a network that its authors trained, which the checkout does not hold",
}


def attack_names(checkout: Path) -> list[str]:
    """The attacks that the checkout has."""
    return sorted(
        path.stem for path in (checkout / "attack").glob("*.py") if path.stem not in ("prototype", "__init__")
    )
