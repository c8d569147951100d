"""backdoor-toolbox's own defenses on its records, those that change the network."""

from __future__ import annotations

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import RunRequest, ToolboxResult
from clp_plugin.types import Record

from ..driving.checkout import Checkout
from ..driving.repairs import OwnRepairs
from .record import poisoned_set
from .toolbox_facts import BACKDOOR_TOOLBOX, DEFENSES, LAUNCHER, MODULES, ORACLES

REPAIRS = OwnRepairs(
    BACKDOOR_TOOLBOX.title,
    LAUNCHER,
    lambda method: f"other_defenses_tool_box/{MODULES[method]}.py",
    DEFENSES,
    oracles=ORACLES,
)


def run_defense(record: Record, method: str, request: RunRequest) -> ToolboxResult:
    """Run one of them on a record of the toolbox, as :meth:`OwnRepairs.run` says.

    Raises:
        ConfigError: If the defense, an option or the record cannot be used, another checkout than the record's is named, or a
            result is there already.
        ToolboxError: If it fails, or leaves nothing that can be used.
    """
    options = REPAIRS.options(method, request.options)
    found = Checkout(poisoned_set(record.folder).root, "the record's place")
    if request.root is not None and request.root.resolve() != found.root.resolve():
        raise ConfigError(
            f"--root {request.root}: {record.folder} lies in {found.root}, whose images and triggers it needs"
        )
    version = record.provenance.toolbox_commit
    return REPAIRS.run(record, method, options, request, found=found, surroundings=found.root, version=version)
