"""BackdoorBox: CLP in the habit of its defenses, and records of its live attacks.

from clp_plugin.adapters.backdoorbox import CLP, live_record, save_record
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .live import live_record as live_record
    from .live import save_record as save_record
    from .plugin_script import CLP as CLP

_HOME_OF = {"CLP": "plugin_script", "live_record": "live", "save_record": "live"}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `bench list toolboxes` does not pay for torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(_import_module(f".{_HOME_OF[name]}", __name__), name)
