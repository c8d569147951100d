"""Adds this plugin to a checkout as one more defense in the toolbox's own habit, and takes it out again.

There is no registry in the toolbox: a defense is a script ``defense/NAME.py`` with ``config/defense/NAME/*.yaml``.
"""

from __future__ import annotations

from pathlib import Path

from ..driving.registration import first_line, is_ours, register_files

NAME = "clp_plugin"
_MARK = first_line("backdoorbench")
_SCRIPT = f'''{_MARK}
"""Runs a method of the installed clp-plugin on a record of this toolbox: see `python defense/clp_plugin.py --help`."""

import os
import sys

# This file has the package's name and Python looks beside the script first.
beside = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [place for place in sys.path if os.path.abspath(place) != beside]

try:
    from clp_plugin.adapters.backdoorbench.plugin_script import main
except ModuleNotFoundError as error:
    sys.exit(f"{{error}}; install it for this Python: {{sys.executable}} -m pip install clp-plugin")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], checkout=os.path.dirname(beside)))
'''
_CONFIGURATION = f"""{_MARK}
device: auto
random_seed: 0
method: clp
u: null # the usual one for the record's data set
u_min: 0
u_max: 10
u_num: 21
"""
_DATASETS = ("cifar10", "cifar100", "gtsrb", "tiny")


def files() -> dict[Path, str]:
    """Path below the checkout to content."""
    configurations = {"config": "cifar10"} | {dataset: dataset for dataset in _DATASETS}
    folder = Path("config", "defense", NAME)
    return {Path("defense", f"{NAME}.py"): _SCRIPT} | {
        folder / f"{name}.yaml": f"{_CONFIGURATION}dataset: {dataset}\n" for name, dataset in configurations.items()
    }


def is_registered(checkout: Path) -> bool:
    """Whether our script lies in the checkout."""
    return is_ours(checkout / "defense" / f"{NAME}.py")


def register(checkout: Path, *, remove: bool = False) -> list[Path]:
    """Write our files into the checkout, or delete them; nothing else is touched.

    Args:
        checkout: The toolbox's root.
        remove: Delete the files instead of writing them.

    Returns:
        The files written or deleted.

    Raises:
        ConfigError: If a file of that name is not ours, or cannot be written.
    """
    done = register_files({checkout / name: content for name, content in files().items()}, remove=remove)
    folder = checkout / "config" / "defense" / NAME
    if remove and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return done
