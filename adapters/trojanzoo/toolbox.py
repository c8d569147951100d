"""TrojanZoo as a toolbox: its stored attacks read, its scripts run with methods of this plugin among their defenses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.records.adapter import ChecksScripts, RunsDefenses, RunsScripts
from clp_plugin.records.exchange import CheckoutState, RunRequest, ToolboxResult

from . import defenses, state
from .record import TrojanZooRecords
from .registration import run_script


class TrojanZoo(TrojanZooRecords, ChecksScripts, RunsDefenses, RunsScripts):
    """All that can be done with TrojanZoo, which is a package with a registry."""

    def check(self, *, root: Path | None = None) -> CheckoutState:
        del root  # it is installed as a package
        return state.check()

    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        return defenses.run_defense(self.open(record, trust=request.trust), method, request)

    def read_defense(self, record: Path, method: str) -> ToolboxResult:
        return defenses.REPAIRS.read(self.open(record), method)

    def run_script(self, script: Path, arguments: Sequence[str], *, root: Path | None = None) -> None:
        del root  # it is installed as a package
        run_script(script, arguments)
