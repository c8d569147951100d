"""Tiny ImageNet and GTSRB in the layouts in which they come, on small trees of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clp_plugin.adapters.builtin.datasets import Dataset, load_dataset
from clp_plugin.adapters.image_sets import image_folder
from clp_plugin.errors import ConfigError, RecordError

WNIDS = ("n02", "n01", "n03")  # as in the archive, not sorted
TRAINED, TESTED = 4, 2  # images a class


def save(file: Path, level: int, size: tuple[int, int], mode: str = "RGB") -> None:
    """One colour, which JPEG keeps within a level or two."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, 255 - level, 100)).save(file)


def tiny_tree(place: Path, *, by_class: bool = False) -> Path:
    root = place / "tiny-imagenet-200"
    annotations = []
    for label, wnid in enumerate(sorted(WNIDS)):
        for number in range(TRAINED):
            save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 40 * label + 10 * number, (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(TESTED):
            name = f"val_{10 * number + 15 - label}.JPEG"  # classes take turns, as in the archive
            folder = root / "val" / (wnid if by_class else "images")
            save(folder / name, 40 * label + 10 * number, (64, 64))
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(sorted(annotations)))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\n")
    (root / "test" / "images").mkdir(parents=True)
    return place


def gtsrb_level(label: int, number: int) -> int:
    return 5 * label + number


def gtsrb_tree(place: Path, *, train: str = "Training", table: str = "GT-final_test.csv", base: str = "gtsrb") -> Path:
    root = place / base / "GTSRB"
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        for number in range(TESTED):
            file = root / train / f"{label:05}" / f"{number:05}_00000.ppm"
            save(file, gtsrb_level(label, number), (29 + number, 30))
        (root / train / f"{label:05}" / f"GT-{label:05}.csv").write_text("Filename;ClassId\n")
        name = f"{42 - label:05}.ppm"
        save(root / "Final_Test" / "Images" / name, gtsrb_level(label, 3), (20, 20))
        rows.append(f"{name};20;20;5;5;15;15;{label}")
    (root.parent / table).write_text("\r\n".join(rows) + "\r\n")
    return place


def tiny_levels(dataset: Dataset, split: str) -> list[list[int]]:
    """[label, first channel] of each image, and that each is of one colour."""
    pixels, labels = getattr(dataset, f"{split}_pixels").astype(int), getattr(dataset, f"{split}_labels")
    assert (pixels.max(axis=(2, 3)) - pixels.min(axis=(2, 3))).max() <= 2
    assert np.abs(pixels[:, 0] + pixels[:, 1] - 255).max() <= 4
    return [[int(label), round(float(image[0].mean()) / 10) * 10] for label, image in zip(labels, pixels, strict=True)]


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_tiny_imagenet_in_both_layouts(tmp_path: Path, by_class: bool, inside: bool) -> None:
    place = tiny_tree(tmp_path, by_class=by_class)
    dataset = load_dataset("tiny_imagenet", path=place / "tiny-imagenet-200" if inside else place)
    assert dataset.name == "tiny_imagenet"
    assert dataset.class_names == ("n01", "n02", "n03")
    assert dataset.input_shape == (3, 64, 64)
    assert tiny_levels(dataset, "train") == [[label, 40 * label + 10 * n] for label in range(3) for n in range(TRAINED)]
    assert tiny_levels(dataset, "test") == [[label, 40 * label + 10 * n] for label in range(3) for n in range(TESTED)]
    assert dataset.mean == (0.4802, 0.4481, 0.3975)


def test_tiny_is_the_same_data_set(tmp_path: Path) -> None:
    assert load_dataset("tiny", path=tiny_tree(tmp_path)).name == "tiny_imagenet"


def test_both_layouts_of_tiny_imagenet_give_a_seed_the_same_images(tmp_path: Path) -> None:
    one, other = tiny_tree(tmp_path / "a"), tiny_tree(tmp_path / "b", by_class=True)
    first, second = (load_dataset("tiny_imagenet", path=place, n_train=5, n_test=4, seed=7) for place in (one, other))
    assert first.test_labels.tolist() == second.test_labels.tolist()
    assert np.array_equal(first.test_pixels, second.test_pixels)
    assert tiny_levels(first, "train") == tiny_levels(second, "train")
    assert all(label == level // 40 for label, level in tiny_levels(first, "train"))


@pytest.mark.parametrize("name", ["tiny_imagenet", "gtsrb"])
def test_only_what_is_chosen_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    place = tiny_tree(tmp_path) if name == "tiny_imagenet" else gtsrb_tree(tmp_path)
    decoded: list[int] = []
    real = image_folder.decode

    def counting(files: Any, size: int) -> Any:
        decoded.append(len(files))
        return real(files, size)

    monkeypatch.setattr(image_folder, "decode", counting)
    load_dataset(name, path=place, n_train=3, n_test=2)
    assert decoded == [3, 2]


def test_grey_images_of_tiny_imagenet_become_colour(tmp_path: Path) -> None:
    place = tiny_tree(tmp_path)
    save(place / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG", 90, (64, 64), mode="L")
    assert np.abs(load_dataset("tiny_imagenet", path=place).train_pixels[0].astype(int) - 90).max() <= 1


def test_a_sorted_val_may_keep_the_empty_folder_of_images(tmp_path: Path) -> None:
    place = tiny_tree(tmp_path, by_class=True)
    (place / "tiny-imagenet-200" / "val" / "images").mkdir()
    assert len(load_dataset("tiny_imagenet", path=place).test_labels) == 3 * TESTED


@pytest.mark.parametrize(("given", "side"), [(None, 64), (16, 16)])
def test_tiny_imagenet_takes_a_size(tmp_path: Path, given: int | None, side: int) -> None:
    dataset = load_dataset("tiny_imagenet", path=tiny_tree(tmp_path), n_train=2, n_test=2, image_size=given)
    assert dataset.input_shape == (3, side, side)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wnids.txt": None}, r"expected Tiny ImageNet .*found tiny-imagenet-200/; give that folder"),
        ({"wnids.txt": "\n"}, r"wnids\.txt: expected one WordNet name a line, found an empty file; unpack"),
        ({"wnids.txt": "n01\nn09\n"}, r"train/n09: class 'n09' has no image.*found no such folder"),
        ({"val/val_annotations.txt": None}, r"cannot read .*val_annotations\.txt: No such file"),
        ({"val/val_annotations.txt": "\n"}, r"val_annotations\.txt: expected one image a line, found none"),
        ({"val/val_annotations.txt": "val_5.JPEG n01\n"}, r"expected image, tab, class .*found 'val_5\.JPEG n01'"),
        ({"val/val_annotations.txt": "val_5.JPEG\tn09\n"}, r"expected image, tab, class of wnids\.txt"),
        ({"val/val_annotations.txt": "val_9.JPEG\tn01\n"}, r"expected val_9\.JPEG, .*found 6 other images"),
    ],
)
def test_a_damaged_tiny_imagenet_is_told(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    place = tiny_tree(tmp_path)
    for name, text in change.items():
        file = place / "tiny-imagenet-200" / name
        file.unlink() if text is None else file.write_text(text)
    with pytest.raises(RecordError, match=message):
        load_dataset("tiny_imagenet", path=place)


def test_a_tiny_imagenet_without_labelled_images_is_told(tmp_path: Path) -> None:
    place = tiny_tree(tmp_path)
    for file in (place / "tiny-imagenet-200" / "val" / "images").iterdir():
        file.unlink()
    with pytest.raises(RecordError, match=r"val: expected images/ and .*found images/, val_annotations\.txt; unpack"):
        load_dataset("tiny_imagenet", path=place)


def check_gtsrb(dataset: Dataset) -> None:
    assert dataset.num_classes == 43
    assert dataset.class_names[42] == "00042"
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.train_labels.tolist() == [label for label in range(43) for _ in range(TESTED)]
    assert dataset.test_labels.tolist() == list(range(43))
    wanted = [gtsrb_level(label, number) for label in range(43) for number in range(TESTED)]
    assert dataset.train_pixels[:, 0, 9, 9].tolist() == wanted
    assert dataset.test_pixels[:, 0, 9, 9].tolist() == [gtsrb_level(label, 3) for label in range(43)]


@pytest.mark.parametrize("inside", ["", "gtsrb", "gtsrb/GTSRB"])
def test_gtsrb_as_torchvision_keeps_it(tmp_path: Path, inside: str) -> None:
    check_gtsrb(load_dataset("gtsrb", path=gtsrb_tree(tmp_path) / inside))


def test_gtsrb_is_found_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gtsrb_tree(tmp_path) / "gtsrb" / "GTSRB")
    check_gtsrb(load_dataset("gtsrb", path="."))


@pytest.mark.parametrize(
    "folder",
    ["", "GTSRB", "GTSRB/Final_Test", "GTSRB/Final_Test/Images"],
)
def test_gtsrb_as_its_archives_unpack(tmp_path: Path, folder: str) -> None:
    gtsrb_tree(tmp_path, train="Final_Training/Images", table="moved.csv", base="")
    (tmp_path / "moved.csv").rename(tmp_path / folder / "GT-final_test.csv")
    check_gtsrb(load_dataset("gtsrb", path=tmp_path))


def test_our_gtsrb_agrees_with_torchvision_s(tmp_path: Path) -> None:
    from torchvision.datasets import GTSRB

    place = gtsrb_tree(tmp_path)
    dataset = load_dataset("gtsrb", path=place, image_size=20)
    for split, labels in (("train", dataset.train_labels), ("test", dataset.test_labels)):
        theirs = sorted((label, np.asarray(image)[0, 0].tolist()) for image, label in GTSRB(str(place), split))
        ours = sorted(zip(labels.tolist(), getattr(dataset, f"{split}_pixels")[:, :, 0, 0].tolist(), strict=True))
        assert ours == theirs


def test_the_full_training_set_of_gtsrb_goes_before_torchvision_s_part(tmp_path: Path) -> None:
    gtsrb_tree(tmp_path)
    gtsrb_tree(tmp_path, train="Final_Training/Images")
    extra = tmp_path / "gtsrb" / "GTSRB" / "Final_Training" / "Images" / "00007" / "x.ppm"
    save(extra, 1, (20, 20))
    assert len(load_dataset("gtsrb", path=tmp_path).train_labels) == 43 * TESTED + 1


@pytest.mark.parametrize(("given", "side"), [(None, 32), (48, 48)])
def test_gtsrb_takes_a_size(tmp_path: Path, given: int | None, side: int) -> None:
    dataset = load_dataset("gtsrb", path=gtsrb_tree(tmp_path), n_train=2, n_test=2, image_size=given)
    assert dataset.input_shape == (3, side, side)


def test_a_gtsrb_without_its_folders_is_told(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(RecordError, match=r"expected GTSRB as torchvision keeps it .*found pictures/; give the folder"):
        load_dataset("gtsrb", path=tmp_path)


def test_a_missing_class_of_gtsrb_is_named(tmp_path: Path) -> None:
    place = gtsrb_tree(tmp_path)
    (place / "gtsrb" / "GTSRB" / "Training" / "00017").rename(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match=r"00017: class '00017' has no image.*found no such folder"):
        load_dataset("gtsrb", path=place)


def test_missing_test_images_of_gtsrb_are_named(tmp_path: Path) -> None:
    place = gtsrb_tree(tmp_path)
    images = place / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    (images / "00007.ppm").unlink()
    with pytest.raises(RecordError, match=r"expected the 43 images of .*csv, found 42 .*missing is 00007\.ppm; unpack"):
        load_dataset("gtsrb", path=place)
    images.rename(images.parent / "Pictures")
    with pytest.raises(RecordError, match=r"Images: expected the test images \*\.ppm, found no such folder; unpack"):
        load_dataset("gtsrb", path=place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"expected the labels of the test images, GT-final_test\.csv, in one of .*GTSRB_Final_Test_GT\.zip"),
        ("Filename;Width\n00000.ppm;20\n", r"columns Filename and ClassId .*KeyError: 'ClassId'; copy it again"),
        ("Filename;ClassId\n00000.ppm\n", r"found KeyError"),
        ("Filename;ClassId\n00000.ppm;stop\n", r"found ValueError: .*'stop'"),
        ("Filename;ClassId\n00000.ppm;43\n", r"expected classes from 0 to 42, found 43"),
        ("Filename;ClassId\n", r"expected classes from 0 to 42, found no row"),
    ],
)
def test_a_damaged_table_of_gtsrb_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    place = gtsrb_tree(tmp_path)
    table = place / "gtsrb" / "GT-final_test.csv"
    table.unlink() if text is None else table.write_text(text)
    with pytest.raises(RecordError, match=message):
        load_dataset("gtsrb", path=place)


@pytest.mark.parametrize("name", ["gtsrb", "tiny_imagenet"])
def test_a_data_set_of_files_needs_its_path(name: str) -> None:
    with pytest.raises(ConfigError, match="give the path"):
        load_dataset(name)
    with pytest.raises(RecordError, match="found nothing"):
        load_dataset(name, path="no/such/folder")
