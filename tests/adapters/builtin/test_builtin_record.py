"""A record of the built-in bench as others leave it: listed, damaged, edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.errors import CheckpointError, ClpError, RecordError


def edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**data, **changes}))


def test_complete_records_are_listed_with_their_attack(folder: Path) -> None:
    adapter = BuiltinAdapter()
    assert adapter.sniff(folder)
    assert not adapter.sniff(folder.parent)
    (listing,) = adapter.records(folder.parent)
    assert listing.complete
    assert listing.summary == "badnets (target 3), digits, builtin:resnet18, seed 1"


def test_a_record_that_lost_a_file_is_listed_as_incomplete(folder: Path) -> None:
    (folder / "images.safetensors").unlink()
    (listing,) = BuiltinAdapter().records(folder.parent)
    assert not listing.complete
    assert "images.safetensors: missing" in listing.summary


def test_a_folder_that_does_not_exist_lists_nothing(tmp_path: Path) -> None:
    assert list(BuiltinAdapter().records(tmp_path / "absent")) == []


def test_changed_weights_are_noticed(folder: Path) -> None:
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"expected SHA-256 .* the weights were changed"):
        BuiltinAdapter().open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "expected schema_version 2, found 99"),
        ({"input_shape": [3, 32]}, "input_shape"),
        ({"input_shape": [3, 16, 16]}, r"clean\.pixels: expected \(N, 3, 16, 16\)"),
        ({"target": {"kind": "all_to_one", "num_classes": 10, "target": 10}}, "outside the 10 classes"),
        ({"architecture": "timm:resnet18"}, "expected an architecture builtin:NAME"),
        ({"architecture_options": {"width": 4, "blocks": [1, 1]}}, "conv1.weight"),
    ],
)
def test_an_edited_description_is_told(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ClpError, match=message):
        BuiltinAdapter().open(folder)


@pytest.mark.parametrize("options", [{"width": 4096}, {"width": 2**40}, {"width": 2, "blocks": [500, 501]}])
def test_a_description_that_asks_for_more_than_the_weights_hold_is_refused(
    folder: Path, options: dict[str, Any]
) -> None:
    edit(folder, architecture_options=options)
    with pytest.raises(ClpError, match=r"asks for a network|at most 1000 blocks"):
        BuiltinAdapter().open(folder)


def test_a_description_that_is_not_json_is_told(folder: Path) -> None:
    (folder / "record.json").write_text('{"attack": ')
    with pytest.raises(RecordError, match=r"record\.json is not JSON"):
        BuiltinAdapter().open(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "images.safetensors", "record.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RecordError, match=name.replace(".", r"\.")):
        BuiltinAdapter().open(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("triggered.clean_index", np.full(54, 60), r"clean_index: expected \(\d+,\) int64 in 0 to 59"),
        ("clean.labels", np.full(60, 10), "clean.labels: expected"),
        ("benign.pixels", np.zeros((2, 3, 8, 8), np.uint8), r"benign\.pixels: expected"),
        ("clean.labels", None, r"missing: clean\.labels"),
    ],
)
def test_images_that_do_not_fit_are_told(folder: Path, name: str, value: Any, message: str) -> None:
    arrays = load_file(folder / "images.safetensors")
    del arrays[name]
    if value is not None:
        arrays[name] = value
    save_file(arrays, folder / "images.safetensors")
    with pytest.raises(RecordError, match=message):
        BuiltinAdapter().open(folder)


def test_a_truncated_images_file_is_told(folder: Path) -> None:
    raw = (folder / "images.safetensors").read_bytes()
    (folder / "images.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(RecordError, match=r"images\.safetensors: not readable"):
        BuiltinAdapter().open(folder)
