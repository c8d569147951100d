"""A record that holds no images finds its own again in the user's data set."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import bench, refused
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_attack import run_attack, small_attack

from clp_plugin.adapters.builtin.borrowed_images import signatures, without_images
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.errors import RecordError
from clp_plugin.records.opening import list_records, open_record
from clp_plugin.types import ImageSet

COUNTS = {"train": 400, "test": 60}


def pictures(count: int, seed: int) -> np.ndarray:
    """Smooth coloured pictures, as unlike each other as photographs are, ``(count, 3, 32, 32)`` uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in coarse]
    return np.stack(resized).transpose(0, 3, 1, 2)


def jpeg(image: np.ndarray) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def write_batches(folder: Path, *, order_seed: int | None = None, lossy: bool = False) -> Path:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for split, files in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        pixels, labels = pictures(COUNTS[split], len(split)), np.arange(COUNTS[split]) % 10
        if order_seed is not None:
            order = np.random.default_rng(order_seed).permutation(len(labels))
            pixels, labels = pixels[order], labels[order]
        if lossy:
            pixels = np.stack([jpeg(image) for image in pixels])
        for file, part in zip(files, np.array_split(np.arange(len(labels)), len(files)), strict=True):
            content = {"data": pixels[part].reshape(len(part), -1), "labels": labels[part].tolist()}
            (batches / file).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A record with its images, and the data set that it was made from."""
    folder = tmp_path_factory.mktemp("borrowing")
    data = write_batches(folder / "data")
    settings = replace(
        small_attack("badnets", n_train=None, n_test=None), dataset="cifar10", data_path=str(data), benign_share=0.05
    )
    return run_attack(settings, folder / "whole"), data


@pytest.fixture
def small(whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record without its images; where the data set lies is told."""
    record, data = whole
    monkeypatch.setenv("CLP_PLUGIN_CIFAR10", str(data))
    without_images(record, tmp_path / "zoo" / "small")
    return tmp_path / "zoo" / "small"


def pixels_of(images: ImageSet | None) -> np.ndarray:
    assert images is not None
    return np.concatenate([batch.numpy() for batch in images.batches(64)])


def test_on_the_very_data_set_all_images_are_those_of_the_record(whole: tuple[Path, Path], small: Path) -> None:
    assert not (small / "images.safetensors").exists()
    full, borrowing = open_record(whole[0]), open_record(small)
    for name in ("clean", "benign", "poisoned_training"):
        assert np.array_equal(pixels_of(getattr(full, name)), pixels_of(getattr(borrowing, name)))
        assert np.array_equal(getattr(full, name).labels, getattr(borrowing, name).labels)
    assert np.array_equal(pixels_of(full.triggered.images), pixels_of(borrowing.triggered.images))
    (listed,) = list_records(small.parent)
    assert listed.complete


def test_in_another_order_and_encoding_the_benign_images_are_the_same_pictures(
    whole: tuple[Path, Path],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CLP_PLUGIN_CIFAR10", str(write_batches(tmp_path / "other", order_seed=7, lossy=True)))
    found = open_record(small)
    benign = load_file(whole[0] / "images.safetensors")["benign.pixels"]
    expected = np.stack([jpeg(image) for image in benign])
    restored = pixels_of(found.benign) * np.reshape(found.provenance.std, (3, 1, 1))
    restored = (restored + np.reshape(found.provenance.mean, (3, 1, 1))) * 255
    assert np.abs(restored - expected).max() < 0.01
    assert "not byte by byte" in caplog.text


def test_a_data_set_without_the_images_is_refused(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_batches(tmp_path / "other")
    batch = other / "cifar-10-batches-py" / "data_batch_1"
    content = pickle.loads(batch.read_bytes())
    batch.write_bytes(pickle.dumps({**content, "data": 255 - content["data"]}))
    monkeypatch.setenv("CLP_PLUGIN_CIFAR10", str(other))
    with pytest.raises(RecordError, match="images are not among them"):
        open_record(small)


def test_without_a_data_set_the_error_says_how_to_name_it(
    whole: tuple[Path, Path], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLP_PLUGIN_CIFAR10")
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(tmp_path / "config.yaml"))
    with pytest.raises(RecordError, match="CLP_PLUGIN_CIFAR10=FOLDER"):
        open_record(small)
    (tmp_path / "config.yaml").write_text(f"datasets: {{cifar10: {{path: '{whole[1]}'}}}}\n")
    assert len(BuiltinAdapter().open(small).clean) == COUNTS["test"]


@pytest.fixture
def nowhere(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record without its images; nothing tells where the data set lies."""
    monkeypatch.delenv("CLP_PLUGIN_CIFAR10")
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(tmp_path / "none.yaml"))
    return small


def test_commands_take_the_place_of_the_data_set_and_give_the_numbers_of_the_whole_record(
    whole: tuple[Path, Path], nowhere: Path, tmp_path: Path
) -> None:
    record, data = whole
    assert "--data FOLDER" in refused("defend", "--method", "clp", "--record", nowhere, "--out", tmp_path / "none")

    def numbers(place: Path, out: str, *given: object) -> dict[str, Any]:
        found = bench("defend", "--method", "clp", "--record", place, "--out", tmp_path / out, *given, "--json").json
        return {name: found[name] for name in ("before", "after")}

    assert numbers(nowhere, "small", "--data", data) == numbers(record, "full")
    swept = [
        bench("sweep", "--record", place, "--u", "2,4", "--out", tmp_path / f"sweep-{place.name}", *given, "--json")
        for place, given in ((nowhere, ("--data", data)), (record, ()))
    ]
    assert swept[0].json == swept[1].json


def test_a_grid_lends_the_data_set_to_the_records_that_have_no_images(
    whole: tuple[Path, Path], nowhere: Path, tmp_path: Path
) -> None:
    both = ("--record", whole[0], "--record", nowhere, "--method", "clp", "--workers", 0, "--out", tmp_path / "grid")
    bench("leaderboard", "run", *both, "--data", whole[1])
    outcomes = [json.loads(file.read_text()) for file in (tmp_path / "grid" / "cells").glob("*.json")]
    assert [outcome["status"] for outcome in outcomes] == ["ok", "ok"]
    assert outcomes[0]["after"] == outcomes[1]["after"]
    page = tmp_path / "page.html"
    bench("leaderboard", "page", tmp_path / "grid", "--out", page, "--data", whole[1])
    without = tmp_path / "without.html"
    assert "no images of 1 record" in bench("leaderboard", "page", tmp_path / "grid", "--out", without).err
    assert page.stat().st_size > without.stat().st_size


def test_a_place_for_images_that_a_record_holds_itself_is_refused(whole: tuple[Path, Path]) -> None:
    record, data = whole
    assert "holds its own images" in refused("sweep", "--record", record, "--data", data)


def test_a_scan_of_a_record_without_images_asks_for_none(whole: tuple[Path, Path], nowhere: Path) -> None:
    found, expected = (bench("scan", place, "--json").json["layers"] for place in (nowhere, whole[0]))
    assert found == expected


@pytest.mark.parametrize(("method", "has_sample"), [("cla", False), ("wanet", True)])
def test_triggers_are_put_on_anew_and_a_sample_that_only_the_attacker_could_make_is_left_out(
    method: str, has_sample: bool, tmp_path: Path
) -> None:
    record = run_attack(small_attack(method, benign_share=0.05), tmp_path / "whole")
    without_images(record, tmp_path / "small")
    full, borrowing = open_record(record), open_record(tmp_path / "small")
    assert np.array_equal(pixels_of(full.triggered.images), pixels_of(borrowing.triggered.images))
    assert (borrowing.poisoned_training is not None) == has_sample


def test_a_record_of_a_part_of_a_data_set_is_not_shared(
    whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data = whole
    monkeypatch.setenv("CLP_PLUGIN_CIFAR10", str(data))
    settings = replace(small_attack("badnets"), dataset="cifar10", data_path=str(data), benign_share=0.05)
    made = run_attack(settings, tmp_path / "part")
    with pytest.raises(RecordError, match="made from a part"):
        without_images(made, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("training.poisoned", np.array([10**6]), "training.poisoned: expected"),
        ("benign.labels", np.array([3]), "benign.labels: expected"),
        ("benign.signatures", np.zeros((20, 5), np.uint8), r"expected \(N, 48\) uint8"),
    ],
)
def test_damaged_signatures_are_told(name: str, array: np.ndarray, message: str, small: Path) -> None:
    file = small / "borrowed.safetensors"
    save_file({**load_file(file), name: array}, file)
    with pytest.raises(RecordError, match=message):
        open_record(small)


@pytest.mark.parametrize("change", [{"method": ["badnets"]}, {"dataset": 3}, {"recipe": None}])
def test_edited_settings_are_told(change: dict[str, object], small: Path) -> None:
    file = small / "record.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "settings": {**content["settings"], **change}}))
    with pytest.raises(RecordError, match=f"settings.{next(iter(change))}"):
        open_record(small)


def test_a_signature_is_the_mean_colour_of_sixteen_parts() -> None:
    image = np.zeros((1, 3, 8, 8), np.uint8)
    image[0, 0, :2, :2], image[0, 2, 6:, 6:] = 200, 100
    (found,) = signatures(image)
    assert (found[0], found[45 + 2], int(found.sum())) == (200, 100, 300)
