"""Open a record of any known toolbox; which one it is, the adapters say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeGuard

from clp_plugin.errors import ConfigError, RecordError, RegistryError
from clp_plugin.records.adapter import (
    BorrowsImages,
    LocatesRecords,
    NamesItsFiles,
    ReadsNetworks,
    ReadsRecords,
    lacking,
)
from clp_plugin.records.exchange import RecordedNetwork, RecordListing
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.types import Record

BENCH = "builtin"  # the toolbox whose attacks make records where no other is named
_log = logging.getLogger(__name__)


def open_record(
    path: str | Path,
    *,
    toolbox: str | None = None,
    trust: bool = False,
    data: str | Path | None = None,
    catalogue: Catalogue | None = None,
) -> Record:
    """Open one attacked model with all that is needed to judge it.

    Args:
        path: The record's folder.
        toolbox: Name in the catalogue of the toolbox that made it; found out by file names if None.
        trust: Allow pickles that run code. Only for files whose content is known.
        data: Where the data set lies that a record without images borrows them of; the configured place if None.
        catalogue: The catalogue of what is on offer; the default one if None.

    Raises:
        RecordError: If there is no record, it is incomplete, or two toolboxes claim it.
        ConfigError: If ``data`` is given for a record that holds its images.
        CheckpointError: If its weights cannot be read safely or do not fit.
        RegistryError: If ``toolbox`` is unknown or cannot be imported.

    Example:
        >>> from clp_plugin import ClpError, open_record
        >>> try:
        ...     open_record("no/such/record")
        ... except ClpError as error:
        ...     print(str(error).endswith("`bench list records` shows what there is"))
        True
    """
    path = Path(path)
    catalogue = catalogue if catalogue is not None else load_catalogue()
    return find_adapter(path, toolbox=toolbox, catalogue=catalogue, data=data).open(path, trust=trust)


def open_network(path: Path, *, trust: bool = False, catalogue: Catalogue | None = None) -> RecordedNetwork:
    """The network of a record for what needs no image: of a record that borrows its images no data set is asked for.

    Args:
        path: The record's folder.
        trust: Allow pickles that run code. Only for files whose content is known.
        catalogue: The catalogue of what is on offer; the default one if None.

    Raises:
        RecordError: If there is no record, it is incomplete, or two toolboxes claim it.
        CheckpointError: If its weights cannot be read safely or do not fit.
    """
    adapter = find_adapter(path, toolbox=None, catalogue=catalogue if catalogue is not None else load_catalogue())
    if isinstance(adapter, ReadsNetworks):
        return adapter.open_network(path, trust=trust)
    record = adapter.open(path, trust=trust)
    return RecordedNetwork(record.model, record.input_shape, record.provenance)


def find_adapter(
    path: Path, *, toolbox: str | None, catalogue: Catalogue, data: str | Path | None = None
) -> ReadsRecords:
    """The adapter that reads the record in a folder.

    Args:
        path: The record's folder.
        toolbox: Name of the toolbox that made it; found out by file names if None.
        catalogue: The catalogue of what is on offer.
        data: Where the data set lies that a record without images borrows them of; the configured place if None.

    Raises:
        RecordError: If there is no record, or not exactly one toolbox claims it.
        ConfigError: If ``data`` is given for a record that holds its images.
        RegistryError: If ``toolbox`` is unknown or cannot be imported.
    """
    adapter = _reading(path, toolbox, catalogue)
    if data is None:
        return adapter
    if not _borrows(adapter, path):
        raise ConfigError(f"--data {data}: {path} holds its own images and borrows none; leave it out")
    return adapter.borrowing_from(Path(data))


def lending(adapter: ReadsRecords, path: Path, data: Path | None) -> ReadsRecords:
    """An adapter told where a data set lies if its record holds no images; where many records are read, others may hold theirs.

    Args:
        adapter: The adapter that reads the record.
        path: The record's folder.
        data: Where the data set lies; the configured place if None.
    """
    return adapter.borrowing_from(data) if data is not None and _borrows(adapter, path) else adapter


def _borrows(adapter: ReadsRecords, path: Path) -> TypeGuard[BorrowsImages]:
    return isinstance(adapter, BorrowsImages) and adapter.borrows(path)


def _reading(path: Path, toolbox: str | None, catalogue: Catalogue) -> ReadsRecords:
    if toolbox is not None:
        adapter = load_adapter(catalogue, toolbox)
        _require_filled_folder(path)
        return adapter
    _require_filled_folder(path)
    adapters = _importable_adapters(catalogue)
    claiming = {name: adapter for name, adapter in adapters.items() if adapter.sniff(path)}
    if not claiming:
        raise RecordError(_nobody_knows(path, adapters))
    if len(claiming) > 1:
        raise RecordError(f"{path} looks like a record of {' and of '.join(claiming)}; say which with --toolbox")
    return next(iter(claiming.values()))


def locate_record(record: Path, *, toolbox: str | None, root: Path | None, catalogue: Catalogue) -> Path:
    """The folder of a record that was given as a path, or by its name in a toolbox's checkout.

    Args:
        record: A folder, or a name that the toolbox's adapter can locate.
        toolbox: The toolbox that knows the name; without it only a path is understood.
        root: The checkout, if not the one that the adapter finds.
        catalogue: The catalogue of what is on offer.
    """
    if toolbox is None or record.is_dir():
        return record
    adapter = load_adapter(catalogue, toolbox)
    return adapter.locate(str(record), root=root) if isinstance(adapter, LocatesRecords) else record


def list_records(root: str | Path, catalogue: Catalogue | None = None) -> list[RecordListing]:
    """Records directly under a folder, complete or not, of all toolboxes, sorted by path.

    Raises:
        RecordError: If ``root`` is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise RecordError(f"cannot list records: there is no folder {root}")
    catalogue = catalogue if catalogue is not None else load_catalogue()
    found = [
        RecordListing(listing.path, listing.summary, listing.complete, toolbox=name)
        for name, adapter in _importable_adapters(catalogue).items()
        for listing in adapter.records(root)
    ]
    return sorted(found, key=lambda record: (str(record.path), record.toolbox))


def load_adapter(catalogue: Catalogue, name: str) -> ReadsRecords:
    """The adapter of a toolbox by its name in the catalogue.

    Raises:
        RegistryError: If the name is unknown, cannot be imported, or is no adapter.
    """
    found = catalogue.resolve("toolboxes", name)
    try:
        adapter = found() if isinstance(found, type) else found
    except Exception as error:  # a third party's constructor
        raise RegistryError(f"toolbox {name!r}: {found!r} cannot be made without arguments: {error}") from error
    if not isinstance(adapter, ReadsRecords):
        lacks = ", ".join(lacking(adapter, ReadsRecords))
        raise RegistryError(f"toolbox {name!r}: {found!r} is no adapter, it lacks {lacks}")
    return adapter


def _importable_adapters(catalogue: Catalogue) -> dict[str, ReadsRecords]:
    """Load all adapters but broken ones: one extension must not make the records of the other toolboxes unreadable."""
    adapters: dict[str, ReadsRecords] = {}
    for name in catalogue.names("toolboxes"):
        try:
            adapters[name] = load_adapter(catalogue, name)
        except RegistryError as error:
            _log.warning("left out: %s", error)
    return adapters


def _require_filled_folder(path: Path) -> None:
    try:
        empty = not any(path.iterdir())
    except FileNotFoundError as error:
        raise RecordError(
            f"there is no record at {path.absolute()}; `bench list records` shows what there is"
        ) from error
    except NotADirectoryError as error:
        raise RecordError(f"{path} is a file; expected a record's folder, perhaps {path.absolute().parent}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if empty:
        raise RecordError(f"{path} is an empty folder, not a record; run the attack that should have filled it")


def _nobody_knows(path: Path, adapters: dict[str, ReadsRecords]) -> str:
    held = sorted(item.name for item in path.iterdir())
    shown = ", ".join(held if len(held) <= 8 else [*held[:8], "..."])
    asked = "; ".join(_shown(name, adapter) for name, adapter in adapters.items()) or "none"
    return f"{path} is not a record of a known toolbox. Looked for: {asked}. Found: {shown}"


def _shown(name: str, adapter: ReadsRecords) -> str:
    return f"{name} ({adapter.looks_for})" if isinstance(adapter, NamesItsFiles) and adapter.looks_for else name
