"""The port between core and toolboxes: what an adapter can do, one protocol for each capability.

Every adapter reads records. What else it can do it shows by having the methods: ``isinstance(adapter, RunsDefenses)``, or
:func:`require` where a command cannot go on without them. An adapter of ours names its capabilities as base classes, so
that mypy holds it to them; one of a third party need not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import CheckoutState, RecordedNetwork, RecordListing, RunRequest, ToolboxResult
from clp_plugin.types import Record

if TYPE_CHECKING:
    from torch import nn


Capability = TypeVar("Capability")


@runtime_checkable
class ReadsRecords(Protocol):
    """Reads a toolbox's records: what every adapter can do. Adapters know no defense."""

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a record of this toolbox, judged by its files' names, without loading any."""
        ...

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record.

        Args:
            path: The record's folder.
            trust: Allow pickles that run code.

        Raises:
            RecordError: If the record is missing or incomplete.
            CheckpointError: If its weights cannot be read safely or do not fit.
        """
        ...

    def records(self, root: Path) -> Iterator[RecordListing]:
        """Records directly under ``root``, complete or not."""
        ...


@runtime_checkable
class NamesItsFiles(Protocol):
    """Says by which files it knows a record, for messages."""

    @property
    def looks_for(self) -> str:
        """The names of the files, such as ``"attack_result.pt or info.pickle"``."""
        ...


@runtime_checkable
class LocatesRecords(Protocol):
    """Knows the records of a checkout by name."""

    def locate(self, name: str, *, root: Path | None = None) -> Path:
        """Folder of the record of that name in the checkout.

        Raises:
            RecordError: If there is none of that name.
            ConfigError: If no checkout is found.
        """
        ...


@runtime_checkable
class BorrowsImages(Protocol):
    """Reads records that hold no images, and finds theirs in a data set that the user has."""

    def borrows(self, path: Path) -> bool:
        """Whether the record in ``path`` holds no images of its own."""
        ...

    def borrowing_from(self, data: Path) -> ReadsRecords:
        """This adapter, told where the data set lies; nothing else is asked then."""
        ...


@runtime_checkable
class ReadsNetworks(Protocol):
    """Reads the network of a record alone, for what needs no image."""

    def open_network(self, path: Path, *, trust: bool = False) -> RecordedNetwork:
        """The attacked network of a record.

        Args:
            path: The record's folder.
            trust: Allow pickles that run code.

        Raises:
            RecordError: If the record is missing or incomplete.
            CheckpointError: If its weights cannot be read safely or do not fit.
        """
        ...


@runtime_checkable
class RunsAttacks(Protocol):
    """Makes records by the toolbox's own attacks."""

    def attack_options(self, given: Mapping[str, object]) -> dict[str, object]:
        """The toolbox's own options for what was asked for in the words of ``bench attack``.

        Args:
            given: Values given for any of ``dataset``, ``model``, ``target``, ``poison_rate``, ``epochs``,
                ``batch_size``, ``lr``, ``weight_decay``; with the built-in bench also the other options of that
                command.

        Raises:
            ConfigError: If the toolbox has no such option.
        """
        ...

    def attacked(self, name: str, method: str, request: RunRequest) -> AbstractContextManager[Path]:
        """Make a record by one of the toolbox's attacks; it may count as unfinished until the block ends well.

        Args:
            name: Name of the new record in the checkout; a folder for the built-in bench.
            method: Name of the attack.
            request: How it is to run.

        Raises:
            ConfigError: If the attack cannot be run as asked, or ``name`` is taken.
            ToolboxError: If its script fails, or leaves nothing that can be used.
        """
        ...


@runtime_checkable
class ChecksAttacks(Protocol):
    """Says beforehand whether an attack can be run, for grids that run for hours."""

    def check_attack(self, name: str, method: str, request: RunRequest) -> None:
        """Refuse at once what :meth:`RunsAttacks.attacked` would refuse later; nothing is run or written.

        Raises:
            ConfigError: If the attack cannot be run as asked, or the record of another one stands at ``name``.
            RegistryError: If the attack is unknown.
            RecordError: If its data set is known to be missing, or to be another one.
        """
        ...


@runtime_checkable
class RunsDefenses(Protocol):
    """Runs the toolbox's own defenses on its records."""

    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        """Run one of the toolbox's own defenses on a record and read its result back.

        Raises:
            ToolboxError: If the script fails, or leaves nothing that can be used; nothing of the record has changed then.
        """
        ...

    def read_defense(self, record: Path, method: str) -> ToolboxResult:
        """Read back what the toolbox's own defense left there earlier.

        Raises:
            RecordError: If there is nothing, or it cannot be used.
        """
        ...


@runtime_checkable
class WritesResults(Protocol):
    """Writes results of this plugin where, and as, the toolbox's own tools read them."""

    def result_folder(self, record: Path, method: str, options: Mapping[str, object]) -> Path:
        """The folder in which the toolbox would look for the result of a method of this plugin."""
        ...

    def export(
        self,
        place: Path,
        name: str,
        *,
        record: Record,
        model: nn.Module,
        final: Mapping[str, float],
        sweep: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Write what the toolbox's tools read of a repaired model.

        Args:
            place: The folder to fill.
            name: The name that ``place`` will have in the end.
            record: The attacked model's record.
            model: The repaired network.
            final: Measurements of the repaired network: those known of ``u``, ``acc``, ``asr``, ``ra``, ``clean_loss``
                and ``triggered_loss``.
            sweep: The same measurements for each u tried; empty where none was.
        """
        ...


@runtime_checkable
class InstallsToolbox(Protocol):
    """Fetches the toolbox itself."""

    def install(self, destination: Path, *, source: str | None, ref: str | None) -> Path:
        """Clone a pinned commit to ``destination``; returns the checkout."""
        ...


@runtime_checkable
class ChecksScripts(Protocol):
    """Tries which of the toolbox's scripts start here."""

    def check(self, *, root: Path | None = None) -> CheckoutState:
        """Try every script of the checkout."""
        ...


@runtime_checkable
class RegistersPlugin(Protocol):
    """Makes this plugin one of the toolbox's own defenses."""

    def register(self, *, root: Path | None = None, remove: bool = False) -> Sequence[Path]:
        """Add this plugin to the checkout as a defense of its own, or take it out; returns the files concerned."""
        ...


@runtime_checkable
class RunsScripts(Protocol):
    """Runs the toolbox's own scripts in this process, with methods of this plugin in the toolbox's registry."""

    def run_script(self, script: Path, arguments: Sequence[str], *, root: Path | None = None) -> None:
        """Run a script as it is.

        Args:
            script: A script of the toolbox, or of a user of it.
            arguments: The script's own.
            root: The toolbox's checkout; found by the adapter if None.

        Raises:
            ConfigError: If the script is missing, or the toolbox cannot be imported.
        """
        ...


def lacking(adapter: object, capability: type[object]) -> list[str]:
    """Names of a capability's methods that an adapter does not have, in the capability's order."""
    wanted = [name for name, member in vars(capability).items() if callable(member) and not name.startswith("_")]
    return [name for name in wanted if not callable(getattr(adapter, name, None))]


def require(adapter: object, capability: type[Capability], *, toolbox: str) -> Capability:
    """An adapter as one with a capability that a command cannot do without.

    Args:
        adapter: The adapter of ``toolbox``.
        capability: One of the protocols of this module.
        toolbox: The toolbox's name in the catalogue, or its record, for the message.

    Raises:
        ConfigError: If the adapter lacks a method of it; says which.
    """
    if isinstance(adapter, capability):
        return adapter
    raise ConfigError(
        f"{toolbox}: this toolbox cannot do that: its adapter {type(adapter).__qualname__} lacks "
        f"{', '.join(lacking(adapter, capability))} ({capability.__name__}); expected a toolbox that can, such as backdoorbench"
    )
