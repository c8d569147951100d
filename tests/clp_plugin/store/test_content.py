"""The hash by which a record is known again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clp_plugin.errors import RecordError
from clp_plugin.store.content import record_content


@pytest.fixture
def record(tmp_path: Path) -> Path:
    place = tmp_path / "record"
    (place / "images" / "3").mkdir(parents=True)
    (place / "model.bin").write_bytes(b"weights")
    (place / "images" / "3" / "a.png").write_bytes(b"pixels")
    return place


def test_a_copy_elsewhere_is_the_same_record(record: Path, tmp_path: Path) -> None:
    assert record_content(record) == record_content(Path(shutil.copytree(record, tmp_path / "elsewhere" / "name")))


def test_what_was_found_out_later_changes_nothing(record: Path) -> None:
    before = record_content(record)
    for name in (
        "defense/clp/outcome.json",
        "analysis/sweep/sweep.csv",
        "clp_plugin_logs/anp.json",
        ".defense.clp-new/x",
    ):
        (record / name).parent.mkdir(parents=True)
        (record / name).write_text("{}")
    assert record_content(record) == before


@pytest.mark.parametrize("change", ["bytes", "name", "size of an image", "another image", "defense of an image folder"])
def test_whatever_a_record_consists_of_counts(record: Path, change: str) -> None:
    before = record_content(record)
    match change:
        case "bytes":
            (record / "model.bin").write_bytes(b"WEIGHTS")
        case "name":
            (record / "model.bin").rename(record / "model2.bin")
        case "size of an image":
            (record / "images" / "3" / "a.png").write_bytes(b"more pixels")
        case "another image":
            (record / "images" / "3" / "b.png").write_bytes(b"pixels")
        case "defense of an image folder":
            (record / "images" / "defense").mkdir()
            (record / "images" / "defense" / "a.png").write_bytes(b"pixels")
    assert record_content(record) != before


def test_a_place_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        record_content(tmp_path / "none")
