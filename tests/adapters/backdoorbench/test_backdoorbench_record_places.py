"""Where records of BackdoorBench and their data are found, and how they are listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backdoorbench_reading import ADAPTER, everything, refusal, transformed
from backdoorbench_trees import (
    MODEL,
    Tree,
    write_clean_training,
    write_crashed,
    write_record,
)

from clp_plugin.adapters.backdoorbench.attack_result import read_attack_result
from clp_plugin.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("no_checkout")


def hidden_data(tree: Tree) -> Path:
    """Take the data set away from beside the record."""
    elsewhere = tree.root.parent / "elsewhere"
    elsewhere.mkdir()
    return (tree.root / "data").rename(elsewhere / "data")


@pytest.mark.parametrize("place", ["recordings/x", "my data/rec örd", "database", "record/inner"])
def test_any_parent_folder_will_do(tmp_path: Path, place: str) -> None:
    """The toolbox itself takes the first ``record`` and the first ``data`` in a path for its own."""
    tree = write_record(tmp_path / place, name="bädnet 0 1")
    record = ADAPTER.open(tree.folder)
    assert torch.equal(everything(record.triggered.images), transformed(tree.triggered))


def test_a_renamed_and_moved_record_is_read_from_its_new_place(tmp_path: Path) -> None:
    tree = write_record(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    folder = (tmp_path / "new/record/badnet_0_1").rename(tmp_path / "new/record/another name")
    assert torch.equal(everything(ADAPTER.open(folder).triggered.images), transformed(tree.triggered))
    assert read_attack_result(folder).stored_name == "badnet_0_1"


@pytest.mark.parametrize(
    ("current", "path"),
    [(".", "record/b"), ("record", "b"), ("record/b", "."), ("data", "../record/b"), ("record/other", "../b")],
)
def test_a_record_is_found_from_any_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str, path: str
) -> None:
    tree = write_record(tmp_path, name="b")
    (tmp_path / "record/other").mkdir()
    monkeypatch.chdir(tmp_path / current)
    record = ADAPTER.open(Path(path))
    assert torch.equal(everything(record.triggered.images), transformed(tree.triggered))


def test_images_are_found_after_the_current_folder_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_record(tmp_path, name="b")
    monkeypatch.chdir(tmp_path)
    record = ADAPTER.open(Path("record/b"))
    monkeypatch.chdir(tmp_path.parent)
    assert torch.equal(everything(record.triggered.images), transformed(tree.triggered))
    assert len(record.benign) == len(tree.train_labels)


def test_a_link_to_a_record_finds_the_data_beside_the_record(tmp_path: Path) -> None:
    tree = write_record(tmp_path / "bench")
    (tmp_path / "short").symlink_to(tree.folder)
    assert len(ADAPTER.open(tmp_path / "short").clean) == len(tree.labels)


@pytest.mark.parametrize("moved", ["record", "record/badnet_0_1"])
def test_records_kept_on_another_disk_find_the_data_beside_the_link(tmp_path: Path, moved: str) -> None:
    tree = write_record(tmp_path / "bench")
    (tmp_path / "disk/a").mkdir(parents=True)
    away = (tree.root / moved).rename(tmp_path / "disk/a/moved")
    (tree.root / moved).symlink_to(away)
    assert len(ADAPTER.open(tree.folder).clean) == len(tree.labels)


def test_a_linked_record_is_found_from_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_record(tmp_path / "bench")
    (tmp_path / "disk/a").mkdir(parents=True)
    tree.folder.symlink_to(tree.folder.rename(tmp_path / "disk/a/moved"))
    (tree.root / "record/other").mkdir()
    monkeypatch.chdir(tree.root / "record/other")
    assert len(ADAPTER.open(Path("../badnet_0_1")).clean) == len(tree.labels)


def test_data_beside_the_record_goes_before_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_record(tmp_path / "mine")
    other = write_record(tmp_path / "other", rule="all2all")
    for file in (other.root / "data").rglob("*_batch*"):
        file.write_bytes(b"would be refused")
    monkeypatch.setenv("BACKDOORBENCH_ROOT", str(other.root))
    assert len(ADAPTER.open(tree.folder).clean) == len(tree.labels)


@pytest.mark.parametrize("stored", ["./data/cifar10", "../data/cifar10", "data\\cifar10", "/mnt/database/data/cifar10"])
def test_data_in_the_checkout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    tree = write_record(tmp_path / "mine", data_path=stored)
    monkeypatch.setenv("BACKDOORBENCH_ROOT", str(hidden_data(tree).parent))
    assert len(ADAPTER.open(tree.folder).clean) == len(tree.labels)


def test_data_at_an_absolute_path_as_stored_is_found(tmp_path: Path) -> None:
    tree = write_record(tmp_path / "mine", data_path=str(tmp_path / "somewhere else/images"))
    (tmp_path / "somewhere else").mkdir()
    (hidden_data(tree) / "cifar10").rename(tmp_path / "somewhere else/images")
    assert len(ADAPTER.open(tree.folder).clean) == len(tree.labels)


def test_missing_data_is_refused_with_all_places_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_record(tmp_path / "mine", data_path="/nowhere/data/cifar10")
    hidden_data(tree)
    monkeypatch.setenv("BACKDOORBENCH_ROOT", str(tmp_path / "checkout"))
    message = refusal(tree.folder)
    for place in (tree.root / "data/cifar10", tmp_path / "checkout/data/cifar10", "/nowhere/data/cifar10"):
        assert str(place) in message
    assert "cifar-10-batches-py" in message
    assert "BACKDOORBENCH_ROOT" in message


def test_records_of_every_state_are_listed(tmp_path: Path) -> None:
    write_record(tmp_path, "a finished")
    write_record(tmp_path, "b to all", rule="all2all")
    write_crashed(tmp_path, "c crashed")
    write_clean_training(tmp_path, "d clean")
    (tmp_path / "record/e something else").mkdir()
    (tmp_path / "record/readme.md").write_text("records go here", encoding="utf-8")
    found = list(ADAPTER.records(tmp_path / "record"))
    assert [(row.path.name, row.complete) for row in found] == [
        ("a finished", True),
        ("b to all", True),
        ("c crashed", False),
        ("d clean", False),
    ]
    for word in ("badnet", "target 3", "cifar10", MODEL, "0.1"):
        assert word in found[0].summary
    assert "all to all" in found[1].summary
    assert "crashed or still runs" in found[2].summary
    assert "clean_model.pth" in found[3].summary


def test_the_large_file_is_not_read_to_list_a_record(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    (tree.folder / "attack_result.pt").write_bytes(b"not even a checkpoint")
    assert [row.complete for row in ADAPTER.records(tmp_path / "record")] == [True]


@pytest.mark.parametrize("info", [b"", b"garbage"])
def test_unreadable_settings_do_not_stop_the_list(tmp_path: Path, info: bytes) -> None:
    tree = write_record(tmp_path)
    (tree.folder / "info.pickle").write_bytes(info)
    (row,) = ADAPTER.records(tmp_path / "record")
    assert "info.pickle" in row.summary
    assert str(tree.folder / "info.pickle") in refusal(tree.folder, CheckpointError)


@pytest.mark.parametrize(("write", "said"), [(write_crashed, "crashed"), (write_clean_training, "clean training")])
def test_an_incomplete_record_is_recognised_and_refused(
    tmp_path: Path, write: Callable[[Path], Path], said: str
) -> None:
    folder = write(tmp_path)
    assert ADAPTER.sniff(folder)
    message = refusal(folder)
    assert str(folder) in message
    assert said in message


def test_other_folders_are_not_taken_for_records(tmp_path: Path) -> None:
    (tmp_path / "attack_result.pt").mkdir()
    assert not ADAPTER.sniff(tmp_path)
    assert not ADAPTER.sniff(tmp_path / "absent")
