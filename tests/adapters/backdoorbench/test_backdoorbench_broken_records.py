"""Records of BackdoorBench that are broken: each is refused in one line that names the file and what is wrong."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backdoorbench_reading import ADAPTER, everything, refusal
from backdoorbench_trees import (
    CLASSES,
    Content,
    write_cifar10,
    write_record,
)

from clp_plugin.errors import CheckpointError, RecordError
from clp_plugin.evaluation.metrics import evaluate

pytestmark = pytest.mark.usefixtures("no_checkout")


@pytest.mark.parametrize(
    "key", ["model_name", "num_classes", "model", "data_path", "img_size", "clean_data", "bd_train", "bd_test"]
)
def test_each_missing_key_is_named_with_its_file(tmp_path: Path, key: str) -> None:
    tree = write_record(tmp_path, edit=lambda content: content.pop(key))
    message = refusal(tree.folder)
    assert f"missing {key}" in message
    assert str(tree.folder / "attack_result.pt") in message


def test_the_empty_result_of_a_crash_is_refused(tmp_path: Path) -> None:
    tree = write_record(tmp_path, edit=dict.clear)
    message = refusal(tree.folder)
    assert "found nothing" in message
    assert str(tree.folder / "attack_result.pt") in message


def replacing(*path: str, by: Any) -> Callable[[Content], None]:
    """An edit that replaces one value deep in the content."""

    def edit(content: Content) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = by

    return edit


BROKEN = {
    "number for a name": (replacing("model_name", by=3), "model_name"),
    "empty data set": (replacing("clean_data", by=""), "clean_data"),
    "no data path": (replacing("data_path", by=None), "data_path"),
    "classes as text": (replacing("num_classes", by="10"), "num_classes"),
    "no classes": (replacing("num_classes", by=0), "num_classes"),
    "size of two": (replacing("img_size", by=(32, 32)), "img_size"),
    "four channels": (replacing("img_size", by=(32, 32, 4)), "img_size"),
    "size of another data set": (replacing("img_size", by=(64, 64, 3)), "64"),
    "no test set": (replacing("bd_test", by=None), "bd_test"),
    "test set of another kind": (replacing("bd_test", by={}), "bd_test"),
    "train set of another kind": (replacing("bd_train", by=[1]), "bd_train"),
    "table is a list": (replacing("bd_test", "bd_data_container", "data_dict", by=[1, 2]), "bd_test"),
    "keys are words": (replacing("bd_test", "bd_data_container", "data_dict", by={"first": {}}), "bd_test"),
    "images in memory": (replacing("bd_test", "bd_data_container", "data_dict", by={0: (0, 3, 1)}), "bd_test"),
    "order of two dimensions": (replacing("bd_test", "original_index_array", by=np.zeros((2, 2))), "bd_test"),
    "order is no array": (replacing("bd_test", "original_index_array", by="all"), "bd_test"),
    "no poisoned image": (replacing("bd_test", "original_index_array", by=[]), "empty"),
    "image without entry": (replacing("bd_test", "original_index_array", by=np.array([0, 999])), "bd_test"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_content_is_refused_by_file_and_key(tmp_path: Path, name: str) -> None:
    edit, named = BROKEN[name]
    tree = write_record(tmp_path, edit=edit)
    message = refusal(tree.folder)
    assert str(tree.folder) in message
    assert named in message


def each_entry(change: Callable[[Content], object]) -> Callable[[Content], None]:
    """An edit of every poisoned test image's entry."""

    def edit(content: Content) -> None:
        for entry in content["bd_test"]["bd_data_container"]["data_dict"].values():
            change(entry)

    return edit


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("other_info"),
        lambda entry: entry.update(other_info=[3]),  # an even number of them could pass for pairs
        lambda entry: entry.update(other_info=["cat", "dog"]),
        lambda entry: entry.update(other_info=None),
        lambda entry: entry.update(other_info=[3, CLASSES]),
        lambda entry: entry.update(other_info=[-1, 2]),
    ],
)
@pytest.mark.parametrize("count", [4, 5])
def test_broken_entries_of_images_are_refused(tmp_path: Path, change: Callable[[Content], object], count: int) -> None:
    def edit(content: Content) -> None:
        each_entry(change)(content)
        content["bd_test"]["original_index_array"] = content["bd_test"]["original_index_array"][:count]

    tree = write_record(tmp_path, edit=edit)
    message = refusal(tree.folder)
    assert "bd_test" in message
    assert str(tree.folder / "attack_result.pt") in message


@pytest.mark.parametrize("model", [None, [1], {"conv1.weight": "none"}])
def test_a_model_that_is_no_state_dict_is_refused(tmp_path: Path, model: object) -> None:
    message = refusal(write_record(tmp_path, edit=replacing("model", by=model)).folder, CheckpointError)
    assert "'model'" in message


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    tree = write_record(tmp_path, edit=replacing("model_name", by="shufflenet_v2_x1_0"))
    message = refusal(tree.folder, CheckpointError)
    assert str(tree.folder / "attack_result.pt") in message
    assert "shufflenet_v2_x1_0" in message


def test_weights_for_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    tree = write_record(tmp_path, edit=replacing("num_classes", by=CLASSES + 2))
    message = refusal(tree.folder, CheckpointError)
    assert "'classifier.1.weight'" in message
    assert "(12, 512, 1, 1)" in message
    assert "(10, 512, 1, 1)" in message


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(write_record(tmp_path, edit=replacing("model_name", by="resnet1001")).folder, CheckpointError)
    assert "resnet1001" in message
    assert "preactresnet18" in message


@pytest.mark.parametrize("name", ["celeba", "svhn"])
def test_data_sets_that_are_not_read_are_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    message = refusal(write_record(tmp_path, edit=replacing("clean_data", by=name)).folder)
    assert name in message
    assert "gtsrb" in message


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_record(tmp_path).folder / "attack_result.pt"
    os.truncate(path, int(path.stat().st_size * share))
    assert str(path) in refusal(path.parent, CheckpointError)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["attack_result.pt", "info.pickle"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_named_and_never_run(tmp_path: Path, name: str, legacy: bool) -> None:
    folder = write_record(tmp_path / "tree").folder
    trap, content = tmp_path / "sprung", {"attack": Trap(tmp_path / "sprung"), "model": {}}
    torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)
    message = refusal(folder, CheckpointError)
    assert str(folder / name) in message
    assert "mkdir" in message
    assert "--trust" in message
    list(ADAPTER.records(folder.parent))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # it was a trap


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    for position in (2, 5, 9):
        tree.png(position).unlink()
    message = refusal(tree.folder)
    assert any(str(tree.png(position)) in message for position in (2, 5, 9))
    assert f"2 more of {len(tree.indices)}" in message


def test_a_missing_class_folder_counts_all_its_images(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    shutil.rmtree(tree.folder / "bd_test_dataset" / "4")
    message = refusal(tree.folder)
    assert str(tree.folder / "bd_test_dataset" / "4") in message
    assert f"2 more of {len(tree.indices)}" in message  # three images a class


def test_a_missing_image_folder_is_named(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    shutil.rmtree(tree.folder / "bd_test_dataset")
    assert str(tree.folder / "bd_test_dataset") in refusal(tree.folder)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image at all"])
def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path, content: bytes) -> None:
    tree = write_record(tmp_path)
    tree.png(6).write_bytes(content)
    record = ADAPTER.open(tree.folder)
    with pytest.raises(RecordError) as caught:
        everything(record.triggered.images)
    assert str(tree.png(6)) in str(caught.value)


def test_an_image_cut_in_half_is_refused(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    os.truncate(tree.png(0), tree.png(0).stat().st_size // 2)
    with pytest.raises(RecordError, match=r"\.png"):
        everything(ADAPTER.open(tree.folder).triggered.images)


def test_poisoned_training_images_are_not_needed_to_judge_a_model(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    shutil.rmtree(tree.folder / "bd_train_dataset")
    for file in (tree.root / "data/cifar10/cifar-10-batches-py").glob("data_batch_*"):
        file.unlink()
    record = ADAPTER.open(tree.folder)
    assert evaluate(record.model, record).n_clean == len(tree.labels)
    with pytest.raises(RecordError, match="data_batch_1"):  # asked for only now
        len(record.benign)


@pytest.mark.parametrize("change", ["shuffled", "short"])
def test_another_data_set_in_the_place_of_the_records_own_is_refused(tmp_path: Path, change: str) -> None:
    tree = write_record(tmp_path)
    keep = np.arange(len(tree.labels))[::-1] if change == "shuffled" else np.arange(5)
    shutil.rmtree(tree.root / "data")
    train, test = (tree.train, tree.train_labels), (tree.clean[keep], tree.labels[keep])
    write_cifar10(tree.root / "data/cifar10", train, test)
    message = refusal(tree.folder)
    assert str(tree.root / "data/cifar10") in message
    assert "not the test set" in message


def test_opening_changes_nothing(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    record = ADAPTER.open(tree.folder)
    evaluate(record.model, record)
    len(record.benign)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before
