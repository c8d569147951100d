"""backdoor-toolbox as a toolbox: its poisoned sets read, CLP beside its own scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clp_plugin.errors import RecordError
from clp_plugin.records.adapter import ChecksScripts, InstallsToolbox, LocatesRecords, RegistersPlugin, RunsDefenses
from clp_plugin.records.exchange import CheckoutState, RunRequest, ToolboxResult

from ..driving import checkout
from ..driving.registration import first_line, register_files
from . import defenses, state
from .record import BackdoorToolboxRecords
from .toolbox_facts import BACKDOOR_TOOLBOX, SCRIPT

_SCRIPT = f'''{first_line(BACKDOOR_TOOLBOX.name)}
"""CLP of the installed clp-plugin on a poisoned set of this toolbox: see `python clp_plugin_defense.py --help`."""

import os
import sys

try:
    from clp_plugin.adapters.backdoor_toolbox.plugin_script import main
except ModuleNotFoundError as error:
    sys.exit(f"{{error}}; install it for this Python: {{sys.executable}} -m pip install clp-plugin")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], checkout=os.path.dirname(os.path.abspath(__file__))))
'''


class BackdoorToolbox(
    BackdoorToolboxRecords, LocatesRecords, InstallsToolbox, ChecksScripts, RegistersPlugin, RunsDefenses
):
    """All that a checkout of backdoor-toolbox can do."""

    def locate(self, name: str, *, root: Path | None = None) -> Path:
        """``poisoned_train_set/DATASET/NAME`` of the checkout, by ``DATASET/NAME``.

        Raises:
            RecordError: If there is none of that name; lists those that there are.
            ConfigError: If no checkout is found.
        """
        found = checkout.find_checkout(BACKDOOR_TOOLBOX, root)
        place = found.root / "poisoned_train_set"
        if not (place / name).is_dir():
            there = sorted(f"{path.parent.name}/{path.name}" for path in place.glob("*/[!.]*") if self.sniff(path))
            raise RecordError(
                f"no record {name!r} in {place} (found by {found.found_by}); there: {', '.join(there) or 'none'}"
            )
        return place / name

    def install(self, destination: Path, *, source: str | None, ref: str | None) -> Path:
        return checkout.install(BACKDOOR_TOOLBOX, destination, source=source, ref=ref)

    def check(self, *, root: Path | None = None) -> CheckoutState:
        return state.check(checkout.find_checkout(BACKDOOR_TOOLBOX, root))

    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        return defenses.run_defense(self.open(record, trust=request.trust), method, request)

    def read_defense(self, record: Path, method: str) -> ToolboxResult:
        return defenses.REPAIRS.read(self.open(record), method)

    def register(self, *, root: Path | None = None, remove: bool = False) -> Sequence[Path]:
        found = checkout.find_checkout(BACKDOOR_TOOLBOX, root)
        return register_files({found.root / SCRIPT: _SCRIPT}, remove=remove)
