"""The place of a toolbox's own results: free or not, and what its script printed."""

from __future__ import annotations

import os
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.store.layout import LOGS

RUN_LOG = "clp_plugin_run.log"  # beside a script's results: what it printed


def require_free(target: Path, *, force: bool) -> None:
    """Refuse a folder that holds an earlier result.

    Raises:
        ConfigError: If it does, and is not to be replaced.
    """
    if target.exists() and any(target.iterdir()) and not force:
        raise ConfigError(
            f"{target} holds an earlier result; give --reuse to measure it, or --force to run again and replace it"
        )


def log_file(folder: Path, name: str) -> Path:
    """The file that a running script's output goes to, and that stays if it fails; two runs at a time have two."""
    return folder / LOGS / f"{name}-{os.getpid()}.log"
