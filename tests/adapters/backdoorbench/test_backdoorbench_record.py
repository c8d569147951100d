"""Records of BackdoorBench: what was written is what is read, and everything broken is named."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from backdoorbench_trees import (
    CLASSES,
    MODEL,
    Content,
    Tree,
    random_weights,
    write_cifar10,
    write_clean_training,
    write_crashed,
    write_mnist,
    write_record,
)
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from clp_plugin.adapters.backdoorbench.attack_result import read_attack_result
from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.adapters.backdoorbench.record import BackdoorBenchAdapter
from clp_plugin.errors import CheckpointError, RecordError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import masked
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.types import ImageSet, TargetRule

ADAPTER = BackdoorBenchAdapter()
# The toolbox's test transform, as its source has it.
TRANSFORM = Compose([Resize((32, 32)), ToTensor(), Normalize([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])])


@pytest.fixture(autouse=True)
def no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of whoever runs the tests must not supply what a record lacks."""
    monkeypatch.delenv("BACKDOORBENCH_ROOT", raising=False)


def transformed(pixels: Any) -> Tensor:
    """Images ``(N, H, W, 3)`` as the toolbox's own pipeline gives them to the network."""
    return torch.stack([TRANSFORM(Image.fromarray(image)) for image in pixels])


def everything(images: ImageSet) -> Tensor:
    return torch.cat(list(images.batches(7)))


def refusal(folder: Path, kind: type[Exception] = RecordError) -> str:
    """The one line with which a record is refused."""
    with pytest.raises(kind) as caught:
        ADAPTER.open(folder)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rule", ["all2one", "all2all"])
def test_the_part_of_the_training_set_is_as_it_was_trained_on(tmp_path: Path, rule: Any) -> None:
    tree = write_record(tmp_path, rule=rule)
    found = ADAPTER.open(tree.folder).poisoned_training
    assert found is not None
    trained_on, labels = tree.train.copy(), tree.train_labels.copy()
    trained_on[tree.train_indices, -3:, -3:] = 255  # the trigger of these trees
    labels[tree.train_indices] = 3 if rule == "all2one" else (labels[tree.train_indices] + 1) % CLASSES
    assert len(tree.train_indices) > 0
    assert torch.allclose(everything(found), transformed(trained_on), atol=1e-6)  # fewer than 500: all, in order
    assert found.labels.tolist() == labels.tolist()


def test_an_attack_that_stored_no_poisoned_training_images_offers_none(tmp_path: Path) -> None:
    assert ADAPTER.open(write_record(tmp_path, with_train=False).folder).poisoned_training is None


@pytest.mark.parametrize("numpy_home", ["core", "_core"])
@pytest.mark.parametrize("key", [np.int64, int])
def test_poisoned_sets_are_read_in_the_toolboxs_order(
    tmp_path: Path, key: Callable[[int], Any], numpy_home: Literal["core", "_core"]
) -> None:
    tree = write_record(tmp_path, key=key, numpy_home=numpy_home)
    result = read_attack_result(tree.folder)
    assert result.test.indices.tolist() == tree.indices.tolist() != sorted(tree.indices.tolist())
    assert result.test.true_labels.tolist() == tree.labels[tree.indices].tolist()
    assert result.test.given_labels.tolist() == [3] * len(tree.indices)
    assert result.test.indices.dtype == result.test.true_labels.dtype == np.int64
    assert result.test.folder == tree.folder / "bd_test_dataset"
    assert result.train is not None
    assert result.train.indices.tolist() == tree.train_indices.tolist()
    assert result.train.true_labels.tolist() == tree.train_labels[tree.train_indices].tolist()
    assert all(file.is_file() for file in (*result.test.files, *result.train.files))


def test_the_rest_of_the_result_is_what_the_attack_stored(tmp_path: Path) -> None:
    result = read_attack_result(write_record(tmp_path, with_train=False).folder)
    assert (result.model_name, result.num_classes, result.image_size) == (MODEL, CLASSES, (32, 32, 3))
    assert (result.dataset, result.data_path) == ("cifar10", "./data/cifar10")
    assert (result.attack, result.poison_rate, result.seed) == ("badnet", 0.1, 7)
    assert result.train is None
    assert list(result.state_dict) == list(random_weights())


def test_a_record_without_settings_is_read_and_says_that_they_are_unknown(tmp_path: Path) -> None:
    record = ADAPTER.open(write_record(tmp_path, info=False).folder)
    assert record.target == TargetRule("all_to_one", CLASSES, 3)
    assert record.provenance.attack == "unknown"
    assert np.isnan(record.provenance.poison_rate)


def test_images_are_bit_equal_to_the_toolboxs_pipeline_and_paired(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    record = ADAPTER.open(tree.folder)
    assert torch.equal(everything(record.clean), transformed(tree.clean))
    assert record.clean.labels.tolist() == tree.labels.tolist()
    assert torch.equal(everything(record.triggered.images), transformed(tree.triggered))
    assert record.triggered.images.labels.tolist() == tree.labels[tree.indices].tolist()  # the true ones
    twins = record.clean.take(record.triggered.clean_index)
    assert torch.equal(everything(twins), transformed(tree.clean[tree.indices]))
    assert torch.equal(everything(record.benign), transformed(tree.train))
    assert record.benign.labels.tolist() == tree.train_labels.tolist()
    assert record.input_shape == (3, 32, 32)


def test_the_model_is_the_stored_one_in_eval_mode(tmp_path: Path) -> None:
    tree = write_record(tmp_path, weights=random_weights(5))
    record = ADAPTER.open(tree.folder)
    reference = torchvision.models.squeezenet1_0(num_classes=CLASSES)
    reference.load_state_dict(random_weights(5))
    assert not record.model.training
    inputs = transformed(tree.clean[:4])
    assert torch.equal(record.model(inputs), reference.eval()(inputs))


def test_a_record_of_one_channel_opens_is_evaluated_and_repaired(tmp_path: Path) -> None:
    """MNIST with a network whose first convolution takes one channel."""
    network = build("preactresnet18", CLASSES, channels=1)
    tree = write_record(
        tmp_path, weights=network.state_dict(), prefix="module.", with_train=False, data_path="./data/mnist",
        edit=lambda content: content.update(model_name="preactresnet18", img_size=(28, 28, 1), clean_data="mnist"),
    )  # fmt: skip
    clean, train = (pixels[:, 2:30, 2:30, 0].copy() for pixels in (tree.clean, tree.train))
    write_mnist(tmp_path / "data" / "mnist", (train, tree.train_labels), (clean, tree.labels))
    for position, index in enumerate(tree.indices):
        stamped = clean[index].copy()
        stamped[-3:, -3:] = 255
        Image.fromarray(stamped).save(tree.png(position))
    record = ADAPTER.open(tree.folder)
    assert record.input_shape == (1, 28, 28)
    inputs = torch.from_numpy(clean[:4])[:, None].float() / 255 * 2 - 1
    assert torch.allclose(record.model(inputs), network(inputs), atol=1e-5)
    with torch.no_grad():
        predicted = network(everything(record.clean)).argmax(1).numpy()
    assert evaluate(record.model, record).acc == pytest.approx(float((predicted == tree.labels).mean()))
    view = fuse(record.model, record.input_shape)
    assert view.layers[0].conv == ("conv1",)
    assert torch.isfinite(masked(record.model, select(score(view), 1.0))(inputs)).all()


def test_prefixes_of_data_parallel_are_passed_over(tmp_path: Path) -> None:
    folder = write_record(tmp_path, prefix="module.").folder
    record = ADAPTER.open(folder)
    assert all(torch.equal(record.model.state_dict()[key], value) for key, value in random_weights().items())


def test_provenance_names_the_file_and_the_toolboxs_model(tmp_path: Path) -> None:
    tree = write_record(tmp_path)
    found = ADAPTER.open(tree.folder).provenance
    assert found.sha256 == hashlib.sha256((tree.folder / "attack_result.pt").read_bytes()).hexdigest()
    assert (found.toolbox, found.architecture) == ("backdoorbench", f"backdoorbench:{MODEL}")
    assert (found.attack, found.dataset, found.poison_rate, found.seed) == ("badnet", "cifar10", 0.1, 7)
    assert (found.mean, found.std) == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    assert found.path == str(tree.folder)


@pytest.mark.parametrize("rule", ["all2one", "all2all"])
def test_rates_are_the_toolboxs_own(tmp_path: Path, rule: Literal["all2one", "all2all"]) -> None:
    """ASR and RA over all of bd_test, ACC over the whole clean test set: by the toolbox's definitions, spelt out."""
    tree = write_record(tmp_path, rule=rule)
    record = ADAPTER.open(tree.folder)
    with torch.no_grad():
        clean = record.model(transformed(tree.clean)).argmax(1).numpy()
        triggered = record.model(transformed(tree.triggered)).argmax(1).numpy()
    found = evaluate(record.model, record)
    assert found.acc == (clean == tree.labels).mean()
    assert found.asr == (triggered == tree.given).mean()
    assert found.ra == (triggered == tree.labels[tree.indices]).mean()
    assert (found.n_clean, found.n_triggered) == (len(tree.labels), len(tree.indices))


@pytest.mark.parametrize("info", [True, False])
@pytest.mark.parametrize("target", [0, CLASSES - 1])
def test_all_to_one_is_read_off_the_labels(tmp_path: Path, target: int, info: bool) -> None:
    tree = write_record(tmp_path, target=target, info=info)
    rule = ADAPTER.open(tree.folder).target
    assert rule == TargetRule("all_to_one", CLASSES, target)
    assert rule.counted(tree.labels).sum() == len(tree.indices)


@pytest.mark.parametrize("info", [True, False])
def test_all_to_all_is_read_off_the_labels(tmp_path: Path, info: bool) -> None:
    tree = write_record(tmp_path, rule="all2all", info=info)
    rule = ADAPTER.open(tree.folder).target
    assert rule == TargetRule("all_to_all", CLASSES)
    assert rule.wanted(tree.labels[tree.indices]).tolist() == tree.given.tolist()
    assert rule.counted(tree.labels).all()


def test_clean_label_attacks_look_like_all_to_one(tmp_path: Path) -> None:
    """lc, sig and ctrl poison only training images of the target: no label there differs from the true one."""

    def keep_labels(content: Content) -> None:
        for entry in content["bd_train"]["bd_data_container"]["data_dict"].values():
            entry["other_info"][0] = entry["other_info"][1]

    folder = write_record(tmp_path, edit=keep_labels, info={"attack": "sig"}).folder
    assert ADAPTER.open(folder).target == TargetRule("all_to_one", CLASSES, 3)
    train = read_attack_result(folder).train
    assert train is not None
    assert train.given_labels.tolist() == train.true_labels.tolist()


@pytest.mark.parametrize(
    ("rule", "found"), [(lambda y: (y + 2) % CLASSES, "shifts 2"), (lambda y: (y * 3 + 1) % CLASSES, "shifts 1, 3")]
)
def test_any_other_rule_is_refused_with_what_was_found(tmp_path: Path, rule: Callable[[int], int], found: str) -> None:
    tree = write_record(tmp_path, rule=rule)
    message = refusal(tree.folder)
    assert found in message
    assert str(tree.folder / "attack_result.pt") in message


@pytest.mark.parametrize(
    ("rule", "info", "said"),
    [
        ("all2one", {"attack_target": 8}, "target 8"),
        ("all2one", {"attack_label_trans": "all2all"}, "all2all"),
        ("all2all", {"attack_label_trans": "all2one"}, "all2one"),
    ],
)
def test_settings_that_contradict_the_labels_are_refused(
    tmp_path: Path, rule: Literal["all2one", "all2all"], info: Content, said: str
) -> None:
    message = refusal(write_record(tmp_path, rule=rule, info=info).folder)
    assert "info.pickle" in message
    assert said in message


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


# What the toolbox itself loads: all labels, and the tensors and predictions of some images.
THEIRS = """
import sys
import numpy, torch, torchvision.datasets.cifar as cifar
cifar.check_integrity = lambda *a, **k: True
cifar.CIFAR10._check_integrity = lambda self: True
sys.path.insert(0, ".")
from utils.save_load_attack import load_attack_result
from utils.aggregate_block.model_trainer_generate import generate_cls_model
result, found = load_attack_result(sys.argv[1]), {}
weights = result["model"]
model = generate_cls_model(result["model_name"], 10).eval()
model.load_state_dict(weights)
for name in ("clean_test", "bd_test"):
    items = [result[name][i] for i in range(0, len(result[name]), 25)]
    found[name] = torch.stack([item[0] for item in items]).numpy()
    with torch.no_grad():
        found[name + "_logits"] = model(torch.from_numpy(found[name])).numpy()
poisoned = result["bd_test"].wrapped_dataset
found["order"] = poisoned.original_index_array
entries = poisoned.bd_data_container.data_dict
found["labels"] = numpy.array([entries[i]["other_info"] for i in poisoned.original_index_array])
numpy.savez(sys.argv[2], **found)
"""


CHECKOUT = os.environ.get("BACKDOORBENCH_ROOT")  # before the fixture above hides it


def finished_records() -> list[str]:
    return sorted(path.parent.name for path in Path(CHECKOUT, "record").glob("*/attack_result.pt")) if CHECKOUT else []


@pytest.mark.slow
@pytest.mark.parametrize("name", finished_records() or [""])
def test_the_toolbox_itself_loads_the_same(tmp_path: Path, name: str) -> None:
    if not name:
        pytest.skip("needs finished records: set BACKDOORBENCH_ROOT to a checkout whose folder record holds some")
    root = Path(CHECKOUT or "")
    folder = root / "record" / name
    script, out = tmp_path / "theirs.py", tmp_path / "theirs.npz"
    script.write_text(THEIRS, encoding="utf-8")
    launcher = [sys.executable, "-m", "clp_plugin.adapters.backdoorbench.launcher", "run"]
    command = [*launcher, str(script), str(folder / "attack_result.pt"), str(out)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs, record = np.load(out), ADAPTER.open(folder)
    assert record.triggered.clean_index.tolist() == theirs["order"].tolist()
    true = record.triggered.images.labels
    assert np.stack([record.target.wanted(true), true], axis=1).tolist() == theirs["labels"].tolist()
    for kind, images in (("clean_test", record.clean), ("bd_test", record.triggered.images)):
        some = everything(images.take(np.arange(0, len(images), 25)))
        assert torch.equal(some, torch.from_numpy(theirs[kind]))
        with torch.no_grad():
            assert torch.allclose(record.model(some), torch.from_numpy(theirs[f"{kind}_logits"]), atol=1e-4)
