"""Which adapter opens what, and what is said when none can."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clp_plugin.errors import ConfigError, RecordError, RegistryError
from clp_plugin.records.exchange import RecordListing
from clp_plugin.records.opening import list_records, open_record
from clp_plugin.registry import Catalogue, Entry


class Marked:
    """An adapter for folders that hold a file of one name."""

    marker = "a.txt"
    looks_for = "a.txt"

    def sniff(self, path: Path) -> bool:
        return (path / self.marker).exists()

    def open(self, path: Path, *, trust: bool = False) -> Any:
        if not self.sniff(path):
            raise RecordError(f"{path} lacks {self.marker}")
        return (type(self).__name__, path, trust)

    def records(self, root: Path) -> Iterator[Any]:
        for folder in root.iterdir():
            if self.sniff(folder):
                yield SimpleNamespace(path=folder, summary=f"{self.marker} in {folder.name}", complete=True)


class Other(Marked):
    marker = "b.txt"
    looks_for = ""


INSTANCE = Other()


class Picky:
    def __init__(self, needed: int) -> None:
        self.needed = needed


def catalogue(**toolboxes: str) -> Catalogue:
    entries = {
        name: Entry(object=f"{__name__}:{thing}", summary="s", origin="here") for name, thing in toolboxes.items()
    }
    return Catalogue({"toolboxes": entries, "defenses": {}, "attacks": {}})


BOTH = {"first": "Marked", "second": "INSTANCE"}


def folder(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "-".join(["run", *names])
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def test_record_goes_to_the_adapter_that_knows_it(tmp_path: Path) -> None:
    path = folder(tmp_path, "b.txt")
    assert open_record(str(path), catalogue=catalogue(**BOTH)) == ("Other", path, False)
    assert open_record(path, trust=True, catalogue=catalogue(**BOTH)) == ("Other", path, True)


def test_record_that_two_toolboxes_claim_is_opened_only_by_name(tmp_path: Path) -> None:
    path = folder(tmp_path, "a.txt", "b.txt")
    with pytest.raises(RecordError, match=r"looks like a record of first and of second; say which with --toolbox"):
        open_record(path, catalogue=catalogue(**BOTH))
    assert open_record(path, toolbox="first", catalogue=catalogue(**BOTH)) == ("Marked", path, False)


def test_folder_that_is_no_record_lists_what_was_looked_for_and_found(tmp_path: Path) -> None:
    path = folder(tmp_path, "notes.md")
    with pytest.raises(RecordError, match=r"Looked for: first \(a\.txt\); second\. Found: notes\.md$"):
        open_record(path, catalogue=catalogue(**BOTH))


def test_named_toolbox_explains_an_incomplete_record_itself(tmp_path: Path) -> None:
    path = folder(tmp_path, "notes.md")
    with pytest.raises(RecordError, match=r"lacks a\.txt"):
        open_record(path, toolbox="first", catalogue=catalogue(**BOTH))


def test_missing_empty_and_file_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    known = catalogue(**BOTH)
    for toolbox in (None, "first"):
        with pytest.raises(RecordError, match=r"there is no record at .*nowhere"):
            open_record(tmp_path / "nowhere", toolbox=toolbox, catalogue=known)
        with pytest.raises(RecordError, match=r"is a file; expected a record's folder"):
            open_record(tmp_path / "file", toolbox=toolbox, catalogue=known)
        with pytest.raises(RecordError, match=r"is an empty folder"):
            open_record(tmp_path / "empty", toolbox=toolbox, catalogue=known)

    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match=r"cannot read .*empty: Permission denied"):
        open_record(tmp_path / "empty", catalogue=known)


def test_unknown_toolbox_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"unknown toolbox 'third'; known: first, second$"):
        open_record(tmp_path, toolbox="third", catalogue=catalogue(**BOTH))


def test_broken_extension_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path, "a.txt")
    known = catalogue(broken="NoSuchThing", picky="Picky", wrong="BOTH", **BOTH)
    with caplog.at_level(logging.WARNING):
        assert open_record(path, catalogue=known) == ("Marked", path, False)
    assert len([r for r in caplog.records if "left out" in r.message]) == 3
    with pytest.raises(RegistryError, match=r"'broken' .*cannot be imported"):
        open_record(path, toolbox="broken", catalogue=known)
    with pytest.raises(RegistryError, match=r"'picky': .*without arguments: .*needed"):
        open_record(path, toolbox="picky", catalogue=known)
    with pytest.raises(RegistryError, match=r"'wrong': .*is no adapter, it lacks sniff, open, records"):
        open_record(path, toolbox="wrong", catalogue=known)


def test_records_of_all_toolboxes_are_listed_in_order(tmp_path: Path) -> None:
    second, first = folder(tmp_path, "b.txt"), folder(tmp_path, "a.txt")
    folder(tmp_path, "notes.md")
    (tmp_path / "loose").touch()
    assert list_records(tmp_path, catalogue(**BOTH)) == [
        RecordListing(first, f"a.txt in {first.name}", True, toolbox="first"),
        RecordListing(second, f"b.txt in {second.name}", True, toolbox="second"),
    ]
    with pytest.raises(RecordError, match=r"there is no folder .*nowhere"):
        list_records(tmp_path / "nowhere", catalogue(**BOTH))
