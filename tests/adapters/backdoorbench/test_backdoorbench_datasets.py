"""The toolbox's clean data sets: its order, its labels, its pixels to the last bit, and nothing read too early."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from backdoorbench_trees import write_cifar10, write_cifar100, write_gtsrb_table, write_mnist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from clp_plugin.adapters.backdoorbench.datasets import FACTS, Split, read_split
from clp_plugin.adapters.backdoorbench.downloads import require_no_download
from clp_plugin.adapters.image_sets import image_files
from clp_plugin.adapters.image_sets.image_files import DecodedFiles, DeferredImages, decode
from clp_plugin.errors import RecordError
from clp_plugin.images import PickedImages
from clp_plugin.types import ImageSet

Pixels = NDArray[np.uint8]
# classes, (C, H, W), mean, std: typed from the toolbox's table of data sets
TABLE: dict[str, tuple[int, tuple[int, int, int], list[float], list[float]]] = {
    "mnist": (10, (1, 28, 28), [0.5], [0.5]),
    "cifar10": (10, (3, 32, 32), [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]),
    "cifar100": (100, (3, 32, 32), [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "gtsrb": (43, (3, 32, 32), [0, 0, 0], [1, 1, 1]),
    "tiny": (200, (3, 64, 64), [0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
    "imagenet": (1000, (3, 224, 224), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def transform(name: str) -> Compose:
    """The toolbox's test transform of a data set."""
    _, (_, height, width), mean, std = TABLE[name]
    return Compose([Resize((height, width)), ToTensor(), Normalize(mean, std)])


def transformed(name: str, images: Sequence[Any]) -> Tensor:
    return torch.stack([transform(name)(image) for image in images])


def everything(images: ImageSet, batch_size: int = 7) -> Tensor:
    return torch.cat(list(images.batches(batch_size)))


def read(name: str, root: Path, split: Split) -> ImageSet:
    return read_split(FACTS[name], root, split)


@pytest.mark.parametrize("name", TABLE)
def test_facts_are_those_of_the_toolbox(name: str) -> None:
    facts = FACTS[name]
    assert (facts.num_classes, facts.shape, [*facts.mean], [*facts.std]) == TABLE[name]


def test_no_data_set_is_offered_that_is_not_checked_here() -> None:
    assert set(FACTS) == set(TABLE)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_equals_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: Split) -> None:
    classes = TABLE[name][0]
    parts = [
        (noise(count, 32, 32, 3, seed=count), np.random.default_rng(count).integers(0, classes, count))
        for count in (23, 11)
    ]
    {"cifar10": write_cifar10, "cifar100": write_cifar100}[name](tmp_path, *parts)
    for checked in ("check_integrity", "CIFAR10._check_integrity"):
        monkeypatch.setattr(f"torchvision.datasets.cifar.{checked}", lambda *_, **__: True)
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    theirs = source(str(tmp_path), train=split == "train", transform=transform(name))
    ours = read(name, tmp_path, split)
    assert ours.labels.tolist() == [label for _, label in theirs]
    assert torch.equal(everything(ours), torch.stack([image for image, _ in theirs]))
    assert len(ours) == {"train": 23, "test": 11}[split]


def test_files_with_other_checksums_are_refused_as_torchvision_would_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path, *((noise(count, 32, 32, 3), np.zeros(count, np.int64)) for count in (10, 2)))
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        torchvision.datasets.CIFAR10(tmp_path)
    with pytest.raises(RecordError, match=r"not take the files there for cifar10 .* put the published files there$"):
        require_no_download(FACTS["cifar10"], tmp_path)
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda *_: True
    )  # as if they were the published ones
    require_no_download(FACTS["cifar10"], tmp_path)


@pytest.mark.parametrize("gone", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_refused_as_torchvision_would_download(tmp_path: Path, gone: str) -> None:
    write_mnist(tmp_path, *((noise(count, 28, 28), np.zeros(count, np.int64)) for count in (3, 2)))
    require_no_download(FACTS["mnist"], tmp_path)
    (tmp_path / "MNIST" / "raw" / gone).unlink()
    with pytest.raises(RecordError, match="files there for mnist"):
        require_no_download(FACTS["mnist"], tmp_path)


def test_a_missing_split_is_refused_as_the_toolbox_would_download(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200" / "val").mkdir(parents=True)
    with pytest.raises(RecordError, match="no tiny-imagenet-200/train"):
        require_no_download(FACTS["tiny"], tmp_path)
    (tmp_path / "tiny-imagenet-200" / "train").mkdir()
    require_no_download(FACTS["tiny"], tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_what_was_written(tmp_path: Path, split: Split, packed: bool) -> None:
    parts = {
        part: (noise(count, 28, 28, seed=count), np.arange(count) * 3 % 10)
        for part, count in (("train", 12), ("test", 9))
    }
    write_mnist(tmp_path, parts["train"], parts["test"])
    for file in (tmp_path / "MNIST/raw").glob("*.gz"):
        if not packed:
            file.unlink()
    ours, (pixels, labels) = read("mnist", tmp_path, split), parts[split]
    assert ours.labels.tolist() == labels.tolist()
    assert torch.equal(everything(ours), transformed("mnist", [Image.fromarray(image) for image in pixels]))


def write_gtsrb(root: Path) -> tuple[dict[str, tuple[Pixels, int]], list[tuple[Pixels, int]]]:
    """Images of all sizes whose tables are not in the order of the file names; returns the test and training images."""
    sizes = [(32, 32), (17, 40), (61, 33), (32, 31), (90, 90)]
    test = {f"{9 - n:05d}.ppm": (noise(*size, 3, seed=n), (7 * n) % 43) for n, size in enumerate(sizes)}
    write_gtsrb_table(root / "Test", "GT-final_test.csv", test)
    train = []
    for label in range(43):
        images = {f"00000_{9 - n:05d}.ppm": (noise(30 + n, 28, 3, seed=label), label) for n in range(1 + label % 3)}
        write_gtsrb_table(root / f"Train/{label:05d}", f"GT-{label:05d}.csv", images)
        train += list(images.values())
    return test, train


def test_gtsrb_is_read_in_the_order_of_its_tables(tmp_path: Path) -> None:
    test, train = write_gtsrb(tmp_path)
    for split, images in (("test", list(test.values())), ("train", train)):
        ours = read("gtsrb", tmp_path, split)  # type: ignore[arg-type]
        assert ours.labels.tolist() == [label for _, label in images]
        wanted = transformed("gtsrb", [Image.fromarray(pixels) for pixels, _ in images])
        assert torch.equal(everything(ours), wanted)


def write_folders(folder: Path, classes: int, inner: str = "") -> dict[Path, int]:
    """One image a class, the last class of two; every third is grey. File to label, in ImageFolder's order."""
    written = {}
    for label in range(classes):
        place = folder / f"n{label:05d}" / inner
        place.mkdir(parents=True)
        for number in range(1 + (label == classes - 1)):
            size = (6, 5) if label % 3 else (6, 5, 3)
            file = place / f"n{label:05d}_{number}.JPEG"
            Image.fromarray(noise(*size, seed=label + number)).save(file)
            written[file] = label
    return written


@pytest.mark.parametrize(
    ("name", "split", "folder", "inner"),
    [
        ("tiny", "test", "tiny-imagenet-200/val", ""),
        ("tiny", "train", "tiny-imagenet-200/train", "images"),
        ("imagenet", "test", "val", ""),
    ],
)
def test_folders_of_classes_are_read_as_the_toolbox_reads_them(
    tmp_path: Path, name: str, split: Split, folder: str, inner: str
) -> None:
    written = write_folders(tmp_path / folder, TABLE[name][0], inner)
    if inner:
        (tmp_path / folder / "n00000/n00000_boxes.txt").write_text("n00000_0.JPEG\t0\t0\t1\t1\n", encoding="utf-8")
    ours = read(name, tmp_path, split)
    assert ours.labels.tolist() == list(written.values())
    some = np.array([0, 1, 100, len(ours) - 1])
    opened = [Image.open(list(written)[position]).convert("RGB") for position in some]
    assert torch.equal(everything(ours.take(some)), transformed(name, opened))


def test_labels_of_files_cost_no_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gtsrb(tmp_path)
    monkeypatch.setattr(image_files, "decode", lambda *_: pytest.fail("an image was decoded"))
    ours = read("gtsrb", tmp_path, "test")
    assert len(ours.take(np.array([1, 3])).labels) == 2


def test_a_missing_file_of_a_table_is_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    (tmp_path / "Test/00008.ppm").unlink()
    with pytest.raises(RecordError, match=r"Test.00008\.ppm: No such file"):
        everything(read("gtsrb", tmp_path, "test"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "no rows"),
        ("Filename;ClassId\n", "no rows"),
        ("Filename,ClassId\na.ppm,1\n", "Key"),
        ("Filename;ClassId\na.ppm;x\n", "x"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, content: str, found: str) -> None:
    write_gtsrb(tmp_path)
    table = tmp_path / "Train/00005/GT-00005.csv"
    table.write_text(content, encoding="utf-8")
    with pytest.raises(RecordError) as caught:
        read("gtsrb", tmp_path, "train")
    assert str(table) in str(caught.value)
    assert found in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    shutil.rmtree(tmp_path / "Train/00042")
    with pytest.raises(RecordError, match=r"GT-00042\.csv"):
        read("gtsrb", tmp_path, "train")


def test_tiny_imagenet_as_it_is_downloaded_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Its ``val`` holds one folder of all images until somebody sorts them."""
    folder = tmp_path / "tiny-imagenet-200/val/images"
    folder.mkdir(parents=True)
    Image.fromarray(noise(64, 64, 3)).save(folder / "val_0.JPEG")
    with pytest.raises(RecordError) as caught:
        read("tiny", tmp_path, "test")
    assert str(folder.parent) in str(caught.value)
    assert "expected 200 classes, found 1" in str(caught.value)
    assert "sorted into class folders" in str(caught.value)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_folder_is_refused_by_name(tmp_path: Path, name: str, split: Split) -> None:
    with pytest.raises(RecordError) as caught:
        everything(read(name, tmp_path, split))
    assert str(tmp_path) in str(caught.value)


def test_damaged_mnist_is_refused(tmp_path: Path) -> None:
    part = (noise(4, 28, 28), np.arange(4))
    write_mnist(tmp_path, part, part)
    for file in (tmp_path / "MNIST/raw").glob("t10k-images*"):
        os.truncate(file, 500)
    with pytest.raises(RecordError) as caught:
        read("mnist", tmp_path, "test")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("label", [-1, 100])
def test_labels_outside_the_classes_are_refused(tmp_path: Path, label: int) -> None:
    part = (noise(3, 32, 32, 3), np.array([0, label, 1]))
    write_cifar100(tmp_path, part, part)
    with pytest.raises(RecordError, match="0 to 99"):
        read("cifar100", tmp_path, "test")


def pngs(folder: Path, count: int) -> tuple[list[Path], Pixels]:
    pixels = noise(count, 6, 5, 3)
    files = [folder / f"{number}.png" for number in range(count)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    return files, pixels


def file_images(files: Sequence[Path]) -> PickedImages:
    count = len(files)
    return PickedImages(
        DecodedFiles(files, (3, 6, 5)), np.arange(count), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), np.arange(count)
    )


def by_definition(pixels: Pixels) -> Tensor:
    convert = Compose([ToTensor(), Normalize([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])])
    return torch.stack([convert(image) for image in pixels])


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_files_become_batches_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(image_files, "KEEP_BYTES", 0)
    files, pixels = pngs(tmp_path, 9)
    batches = list(file_images(files).batches(batch_size))
    assert [len(batch) for batch in batches] == [min(batch_size, 9 - start) for start in range(0, 9, batch_size)]
    assert torch.equal(torch.cat(batches), by_definition(pixels))
    assert batches[0].dtype == torch.float32


def test_more_files_than_are_decoded_at_a_time_stay_in_order(tmp_path: Path) -> None:
    files, pixels = pngs(tmp_path, 300)
    order = np.random.default_rng(0).permutation(300)
    assert torch.equal(everything(file_images(files).take(order), 300), by_definition(pixels[order]))


@pytest.mark.parametrize("kept", [True, False])
def test_taking_selects_repeats_and_nests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    if not kept:
        monkeypatch.setattr(image_files, "KEEP_BYTES", 0)
    files, pixels = pngs(tmp_path, 9)
    wanted = np.array([8, 2, 2, 5])
    part = file_images(files).take(np.array([5, 2, 8])).take(np.array([2, 1, 1, 0]))
    assert part.labels.tolist() == wanted.tolist()
    assert torch.equal(everything(part, 3), by_definition(pixels[wanted]))
    assert list(part.take(np.zeros(0, dtype=np.int64)).batches(4)) == []


@pytest.mark.parametrize(("limit", "times"), [(9 * 90, 1), (9 * 90 - 1, 2)])
def test_each_file_is_decoded_once_while_all_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, times: int
) -> None:
    files, _ = pngs(tmp_path, 9)
    decoded: list[Path] = []

    def counting(file: Path, shape: tuple[int, int, int]) -> Pixels:
        decoded.append(file)
        return decode(file, shape)

    monkeypatch.setattr(image_files, "decode", counting)
    monkeypatch.setattr(image_files, "KEEP_BYTES", limit)
    images = file_images(files)
    assert decoded == []
    everything(images.take(np.array([1, 1, 4])))
    everything(images, 2)
    everything(images.take(np.arange(9)))
    assert sorted(decoded) == sorted(files * times + ([] if times == 1 else [files[1], files[1], files[4]]))


def test_a_file_repaired_after_an_error_is_read_again(tmp_path: Path) -> None:
    files, pixels = pngs(tmp_path, 3)
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:40])
    images = file_images(files)
    with pytest.raises(RecordError, match=r"1\.png cannot be read as an image"):
        everything(images)
    files[1].write_bytes(whole)
    assert torch.equal(everything(images), by_definition(pixels))


def test_deferred_images_are_loaded_once_and_only_when_asked_for(tmp_path: Path) -> None:
    files, pixels = pngs(tmp_path, 3)
    loaded: list[PickedImages] = []

    def load() -> PickedImages:
        loaded.append(file_images(files))
        return loaded[-1]

    images = DeferredImages(load)
    assert loaded == []
    assert (len(images), images.labels.tolist()) == (3, [0, 1, 2])
    assert torch.equal(everything(images), by_definition(pixels))
    assert torch.equal(everything(images.take(np.array([2]))), by_definition(pixels[2:]))
    assert len(loaded) == 1
