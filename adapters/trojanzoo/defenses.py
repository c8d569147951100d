"""TrojanZoo's own defenses on its records, those that change the network."""

from __future__ import annotations

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import RunRequest, ToolboxResult
from clp_plugin.types import Record

from ..driving.checkout import Checkout
from ..driving.repairs import OwnRepairs
from .presence import presence
from .toolbox_facts import DEFENSES, LAUNCHER, SCRIPTS, TOOLBOX

REPAIRS = OwnRepairs("TrojanZoo", LAUNCHER, f"{SCRIPTS}/{{}}.py".format, DEFENSES)


def run_defense(record: Record, method: str, request: RunRequest) -> ToolboxResult:
    """Run one of them on a record of the toolbox, as :meth:`OwnRepairs.run` says.

    Raises:
        ConfigError: If TrojanZoo is not installed; the defense, an option or the record cannot be used; or a result is there.
        ToolboxError: If it fails, or leaves nothing that can be used.
    """
    options = REPAIRS.options(method, request.options)
    architecture = record.provenance.architecture
    if not architecture.startswith(f"{TOOLBOX}:"):
        raise ConfigError(
            f"{record.folder}: {method} runs on networks of TrojanZoo's own; expected a record made with --arch "
            f"{TOOLBOX}:NAME, found {architecture}"
        )
    installed = presence()
    found = Checkout(installed.root, installed.found_by)
    return REPAIRS.run(record, method, options, request, found=found, surroundings=None, version=installed.version)
