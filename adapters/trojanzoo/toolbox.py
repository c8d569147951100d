"""TrojanZoo as a toolbox: its stored attacks read, its scripts run with methods of this plugin among their defenses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.records.adapter import ChecksScripts, RunsScripts
from clp_plugin.records.exchange import CheckoutState

from . import state
from .record import TrojanZooRecords
from .registration import run_script


class TrojanZoo(TrojanZooRecords, ChecksScripts, RunsScripts):
    """All that can be done with TrojanZoo, which is a package with a registry."""

    def check(self, *, root: Path | None = None) -> CheckoutState:
        del root  # it is installed as a package
        return state.check()

    def run_script(self, script: Path, arguments: Sequence[str], *, root: Path | None = None) -> None:
        del root  # it is installed as a package
        run_script(script, arguments)
