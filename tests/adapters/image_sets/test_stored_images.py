"""Every layout of images is read as the same pixels and labels; what is damaged or ambiguous is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from backdoorbench_trees import write_cifar10, write_cifar100
from numpy.typing import NDArray
from PIL import Image

from clp_plugin.adapters.image_sets.stored_images import read_labelled, read_unlabelled
from clp_plugin.errors import RecordError

LABELS = np.asarray([2, 0, 1, 2])
PIXELS = np.random.default_rng(0).integers(0, 256, size=(4, 3, 6, 5), dtype=np.uint8)
SHAPE = (3, 6, 5)


def save(file: Path, pixels: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file)


def npz(place: Path) -> Path:
    np.savez(place / "images.npz", x=PIXELS, y=LABELS)
    return place / "images.npz"


def npz_channels_last(place: Path) -> Path:
    np.savez_compressed(place / "images.npz", x=PIXELS.transpose(0, 2, 3, 1), y=LABELS.astype(np.uint8))
    return place / "images.npz"


def npy(place: Path) -> Path:
    np.save(place / "images.npy", PIXELS)
    np.save(place / "y.npy", LABELS)
    return place / "images.npy"


def folders(place: Path) -> Path:
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(place / "abc"[label] / f"{number}.png", pixels)
    return place


def tree_with_a_test_folder(place: Path) -> Path:
    folders(place / "val")
    for name in "abc":
        save(place / "train" / name / "other.png", PIXELS[0])
    return place


def table_of_numbers(place: Path) -> Path:
    for number, pixels in enumerate(PIXELS):
        save(place / f"{number}.png", pixels)
    rows = [f"{number}.png,{label}" for number, label in enumerate(LABELS)]
    (place / "labels.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    return place


def table_of_names(place: Path) -> Path:
    for number, pixels in enumerate(PIXELS):
        save(place / "all" / f"{number}.png", pixels)
    rows = [f"all/{number}.png;9;{'abc'[label]}" for number, label in enumerate(LABELS)]
    (place / "GT.csv").write_text("\r\n".join(["Path;Width;ClassId", *rows]) + "\r\n")
    return place


@pytest.mark.parametrize(
    "layout",
    [npz, npz_channels_last, npy, folders, tree_with_a_test_folder, table_of_numbers, table_of_names],
    ids=lambda layout: layout.__name__,
)
def test_every_layout_gives_the_same_images(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    found = read_labelled(layout(tmp_path))
    images = found.images.sized(SHAPE)[np.arange(4)]
    order = np.argsort(found.labels, kind="stable")  # class folders come class by class
    wanted = np.argsort(LABELS, kind="stable")
    assert (found.labels[order] == LABELS[wanted]).all()
    assert (images[order] == PIXELS[wanted]).all()
    assert found.images.sizes() == {(6, 5)}


def test_cifar_gives_its_test_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(7, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(7)
    last = pixels.transpose(0, 2, 3, 1)
    write_cifar10(tmp_path / "ten", (last[::-1], labels), (last, labels))
    write_cifar100(tmp_path / "hundred", (last[::-1], labels), (last, 9 + labels))
    for folder, first in (("ten", 0), ("hundred", 9)):
        found = read_labelled(tmp_path / folder)
        assert (found.labels == first + labels).all()
        assert (found.images.sized((3, 32, 32))[labels] == pixels).all()


def test_files_of_other_sizes_are_resized_and_arrays_are_not(tmp_path: Path) -> None:
    folders(tmp_path / "files")
    save(tmp_path / "files" / "a" / "large.png", np.full((3, 20, 20), 77, dtype=np.uint8))
    found = read_labelled(tmp_path / "files")
    assert found.images.sizes() == {(6, 5), (20, 20)}
    large = [name.endswith("large") for name in found.images.names].index(True)
    assert (found.images.sized(SHAPE)[np.asarray([large])] == 77).all()
    assert found.images.sized((1, 4, 4))[np.arange(5)].shape == (5, 1, 4, 4)
    with pytest.raises(RecordError, match="expected images of"):
        read_labelled(npz(tmp_path)).images.sized((3, 4, 4))


def test_the_digest_sees_a_changed_pixel_a_changed_label_and_only_what_is_used(tmp_path: Path) -> None:
    place = table_of_numbers(tmp_path)
    used = np.asarray([0, 1])
    before = read_labelled(place).digest(used)
    save(place / "3.png", PIXELS[0])
    assert read_labelled(place).digest(used) == before
    save(place / "1.png", PIXELS[0])
    changed = read_labelled(place).digest(used)
    assert changed != before
    table = place / "labels.csv"
    table.write_text(table.read_text().replace("0.png,2", "0.png,1"))
    assert read_labelled(place).digest(used) not in (before, changed)


def test_unlabelled_images_are_found_at_any_depth(tmp_path: Path) -> None:
    images, index = read_unlabelled(folders(tmp_path))
    assert images.names == ["a/1", "b/2", "c/0", "c/3"]
    assert index is None
    np.savez(tmp_path / "some.npz", x=PIXELS, index=[3, 1, 2, 0])
    assert read_unlabelled(tmp_path / "some.npz")[1].tolist() == [3, 1, 2, 0]  # type: ignore[union-attr]


def broken(name: str, place: Path) -> Path:
    """A folder or file with one thing wrong."""
    path = place / "x.npz"
    if name == "no y":
        np.savez(path, x=PIXELS)
    elif name == "float":
        np.savez(path, x=PIXELS / 255, y=LABELS)
    elif name == "too few labels":
        np.savez(path, x=PIXELS, y=LABELS[:3])
    elif name == "pickled":
        np.savez(path, x=np.asarray([object()], dtype=object), y=LABELS)
    elif name == "text":
        path.write_text("no zip")
    elif name == "nothing":
        return place / "none"
    else:
        path = place / "files"
        path.mkdir()
        if name == "two tables":
            for table in ("a.csv", "b.csv"):
                (path / table).write_text("file,label\n")
        elif name == "a lost image":
            table_of_numbers(path)
            (path / "2.png").unlink()
        elif name == "a name that leads out":
            table_of_numbers(path)
            with (path / "labels.csv").open("a") as table_file:
                table_file.write("../0.png,1\n")
        elif name == "other columns":
            (path / "labels.csv").write_text("one,two\n1,2\n")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no y", r"expected the arrays x \(images\) and y"),
        ("float", "uint8, found .* float64"),
        ("too few labels", "a label for each of 4 images, found 3"),
        ("pickled", "not a readable file of numpy arrays"),
        ("text", "not a readable file of numpy arrays"),
        ("nothing", "found no such folder"),
        ("two tables", "expected one CSV of labels, found a.csv, b.csv"),
        ("a lost image", "names 4 images, of which 1 are missing; the first is .*2.png"),
        ("a name that leads out", "expected names of images in"),
        ("other columns", "expected a column .* found one, two"),
        ("empty", "expected class folders with images"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_labelled(broken(name, tmp_path))
