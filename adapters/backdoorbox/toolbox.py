"""BackdoorBox as a toolbox: its records read, its users' scripts run with CLP among its defenses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.records.adapter import ChecksScripts, InstallsToolbox, RunsDefenses, RunsScripts
from clp_plugin.records.exchange import CheckoutState, RunRequest, ToolboxResult

from ..driving import checkout
from ..driving.bridges import restore_numpy_names, take_the_cpu_for_cuda
from ..driving.program import run_as_program
from . import defenses, state
from .importing import lend_core
from .record import BackdoorBoxRecords
from .toolbox_facts import BACKDOORBOX


class BackdoorBox(BackdoorBoxRecords, InstallsToolbox, ChecksScripts, RunsDefenses, RunsScripts):
    """All that a checkout of BackdoorBox can do."""

    def install(self, destination: Path, *, source: str | None, ref: str | None) -> Path:
        return checkout.install(BACKDOORBOX, destination, source=source, ref=ref)

    def check(self, *, root: Path | None = None) -> CheckoutState:
        return state.check(checkout.find_checkout(BACKDOORBOX, root))

    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        found = checkout.find_checkout(BACKDOORBOX, request.root, record=record)
        return defenses.run_defense(found, self.open(record, trust=request.trust), method, request)

    def read_defense(self, record: Path, method: str) -> ToolboxResult:
        return defenses.REPAIRS.read(self.open(record), method)

    def run_script(self, script: Path, arguments: Sequence[str], *, root: Path | None = None) -> None:
        if not script.is_file():
            raise ConfigError(f"{script}: expected a script that imports BackdoorBox's core, found none")
        found = checkout.find_checkout(BACKDOORBOX, root)
        from .plugin_script import CLP  # commands of ours: not needed to read records

        def prepare() -> None:
            restore_numpy_names()
            take_the_cpu_for_cuda()
            lend_core(found.root, {"CLP": CLP})

        run_as_program(script, arguments, prepare=prepare)
