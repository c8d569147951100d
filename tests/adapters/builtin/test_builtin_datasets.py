"""Data sets by name and path."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clp_plugin.adapters.builtin.datasets import channel_statistics, load_dataset
from clp_plugin.errors import ClpError, ConfigError, RecordError

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def colour_of(label: int, number: int) -> tuple[int, int, int]:
    return (20 * label, 3 * number, 100)


def make_tree(root: Path, classes: tuple[str, ...], *, size: int = 32, each: int = 3, test: str = "test") -> Path:
    for split in ("train", test):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                image = Image.new("RGB", (size, size), colour_of(label, number))
                image.save(root / split / name / f"{number:04}.png")
    return root


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.full((4, 3072), index, dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [index] * 4}))
    return tmp_path


def test_digits_need_no_path_and_have_the_sizes_asked_for() -> None:
    dataset = load_dataset("digits", n_train=30, n_test=10)
    assert dataset.train_pixels.shape == (30, 3, 32, 32)
    assert dataset.test_pixels.shape == (10, 3, 32, 32)
    assert dataset.num_classes == 10
    assert dataset.input_shape == (3, 32, 32)


@pytest.mark.parametrize("inside", [False, True])
def test_cifar_batches_are_found_from_the_folder_or_its_parent(batches: Path, inside: bool) -> None:
    dataset = load_dataset("cifar10", path=batches / "cifar-10-batches-py" if inside else batches)
    assert dataset.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert np.array_equal(dataset.train_pixels[:, 0, 0, 0], dataset.train_labels)
    assert dataset.test_labels.tolist() == [5] * 4
    assert dataset.class_names == CIFAR


def test_cifar_as_a_tree_has_the_standard_labels(tmp_path: Path) -> None:
    dataset = load_dataset("cifar10", path=make_tree(tmp_path, CIFAR))
    assert dataset.class_names == CIFAR
    assert dataset.train_labels.tolist() == [label for label in range(10) for _ in range(3)]
    for pixels, label, number in zip(dataset.train_pixels, dataset.train_labels, [0, 1, 2] * 10, strict=True):
        assert tuple(pixels[:, 5, 5]) == colour_of(int(label), number)


def test_both_cifar_layouts_share_one_normalization(tmp_path: Path, batches: Path) -> None:
    tree = load_dataset("cifar10", path=make_tree(tmp_path / "tree", CIFAR))
    assert (tree.mean, tree.std) == (
        load_dataset("cifar10", path=batches).mean,
        load_dataset("cifar10", path=batches).std,
    )


def test_a_subset_is_seeded_and_keeps_pixels_and_labels_together(batches: Path) -> None:
    first = load_dataset("cifar10", path=batches, n_train=8, n_test=2, seed=1)
    again = load_dataset("cifar10", path=batches, n_train=8, n_test=2, seed=1)
    others = [load_dataset("cifar10", path=batches, n_train=8, seed=seed).train_labels.tolist() for seed in range(2, 7)]
    assert len(first.train_labels) == 8
    assert len(first.test_labels) == 2
    assert np.array_equal(first.train_pixels[:, 0, 0, 0], first.train_labels)
    assert first.train_labels.tolist() == again.train_labels.tolist()
    assert any(labels != first.train_labels.tolist() for labels in others)


def test_a_subset_of_a_tree_keeps_pixels_and_labels_together(tmp_path: Path) -> None:
    dataset = load_dataset("folder", path=make_tree(tmp_path, ("a", "b", "c"), size=8, each=5), n_train=7, n_test=3)
    assert (dataset.train_pixels[:, 0, 0, 0] == 20 * dataset.train_labels).all()
    assert (dataset.test_pixels[:, 0, 0, 0] == 20 * dataset.test_labels).all()
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (7, 3)


def test_a_folder_takes_the_size_of_its_first_image_or_the_one_given(tmp_path: Path) -> None:
    make_tree(tmp_path, ("a", "b"), size=12, test="val")
    Image.new("RGB", (40, 20), (9, 8, 7)).save(tmp_path / "train" / "b" / "wide.png")
    assert load_dataset("folder", path=tmp_path).input_shape == (3, 12, 12)
    resized = load_dataset("folder", path=tmp_path, image_size=16)
    assert resized.input_shape == (3, 16, 16)
    assert tuple(resized.train_pixels[-1][:, 3, 3]) == (9, 8, 7)


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    make_tree(tmp_path, ("a", "b"), size=8)
    Image.new("L", (8, 8), 77).save(tmp_path / "train" / "b" / "z1.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "train" / "b" / "z2.png")
    pixels = load_dataset("folder", path=tmp_path).train_pixels
    assert tuple(pixels[-2][:, 0, 0]) == (77, 77, 77)
    assert tuple(pixels[-1][:, 0, 0]) == (1, 2, 3)


def test_images_may_lie_deeper_and_the_fitting_test_folder_is_taken(tmp_path: Path) -> None:
    # Tiny ImageNet: train/<class>/images/*.JPEG beside an unlabelled test/.
    make_tree(tmp_path, ("n1", "n2"), size=8, test="val")
    for name in ("n1", "n2"):
        (tmp_path / "train" / name / "images").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "images" / "x.JPEG")
    (tmp_path / "test" / "images").mkdir(parents=True)
    dataset = load_dataset("folder", path=tmp_path)
    assert np.bincount(dataset.train_labels).tolist() == [4, 4]
    assert np.bincount(dataset.test_labels).tolist() == [3, 3]


def test_statistics_agree_with_numpy() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (6, 3, 5, 7), dtype=np.uint8)
    mean, std = channel_statistics(pixels)
    assert mean == pytest.approx((pixels / 255).mean(axis=(0, 2, 3)), abs=1e-4)
    assert std == pytest.approx((pixels / 255).std(axis=(0, 2, 3)), abs=1e-4)


def test_a_black_channel_does_not_divide_by_zero() -> None:
    assert min(channel_statistics(np.zeros((2, 3, 4, 4), np.uint8))[1]) > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cifar11"}, ConfigError, "unknown dataset 'cifar11'; known: cifar10, digits, folder"),
        ({"name": "cifar10"}, ConfigError, "give the path"),
        ({"name": "digits", "path": "x"}, ConfigError, "reads no files"),
        ({"name": "digits", "n_train": 0}, ConfigError, "n_train: expected a positive number"),
        ({"name": "digits", "image_size": 64}, ConfigError, "only 'folder' takes a size"),
        ({"name": "cifar10", "path": "no/such/folder"}, RecordError, "found nothing"),
    ],
)
def test_impossible_requests_are_told(arguments: dict[str, object], error: type[ClpError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_dataset(**arguments)  # type: ignore[arg-type]


def test_asking_for_more_images_than_there_are_is_told(batches: Path) -> None:
    with pytest.raises(ConfigError, match="n_train=21: the data set has only 20 images"):
        load_dataset("cifar10", path=batches, n_train=21)


def test_another_layout_tells_what_was_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(RecordError, match=r"expected CIFAR-10 as torchvision keeps it.*found pictures/"):
        load_dataset("cifar10", path=tmp_path)
    with pytest.raises(RecordError, match=r"expected the folders train/<class>/.*found pictures/"):
        load_dataset("folder", path=tmp_path)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path, ("a", "b"), size=8)
    for file in (tmp_path / "train" / "b").iterdir():
        file.unlink()
    (tmp_path / "train" / "b" / "notes.txt").write_text("none")
    with pytest.raises(RecordError, match=r"class 'b' has no image.*found notes\.txt"):
        load_dataset("folder", path=tmp_path)


def test_other_test_classes_are_named(tmp_path: Path) -> None:
    make_tree(tmp_path, ("a", "b"), size=8)
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(RecordError, match="missing: b; unknown: c"):
        load_dataset("folder", path=tmp_path)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path, ("a", "b"), size=8)
    (tmp_path / "train" / "b" / "0001.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(RecordError, match=r"0001\.png cannot be read as an image"):
        load_dataset("folder", path=tmp_path)


def test_a_tree_of_other_classes_is_not_cifar(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="the 10 classes of CIFAR-10, found 2"):
        load_dataset("cifar10", path=make_tree(tmp_path, ("a", "b"), size=8))
