"""Records of BackdoorBench: what was written is what is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from backdoorbench_reading import ADAPTER, everything, refusal, transformed
from backdoorbench_trees import (
    CLASSES,
    MODEL,
    Content,
    random_weights,
    write_mnist,
    write_record,
)
from PIL import Image

from clp_plugin.adapters.backdoorbench.attack_result import read_attack_result
from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import masked
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.types import TargetRule

pytestmark = pytest.mark.usefixtures("no_checkout")


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
