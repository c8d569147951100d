"""Reading CIFAR-10's pickles without trusting them."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clp_plugin.adapters.image_sets.cifar_batches import TEST_FILES, TRAIN_FILES, read_batches
from clp_plugin.errors import RecordError


def images(n: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n).tolist()


def python2_pickle(data: NDArray[np.uint8], labels: list[int]) -> bytes:
    """The bytes that Python 2's cPickle wrote for the official files: protocol 2, byte strings, numpy.core names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    shape = b"M" + struct.pack("<H", data.shape[0]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    raw = b"T" + struct.pack("<I", data.size) + data.tobytes()
    array = empty + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    label = text(b"batch_label") + text(b"testing batch 1 of 1")
    return b"\x80\x02}(" + label + text(b"labels") + numbers + text(b"data") + array + b"u."


def test_the_official_python2_format_is_read_and_means_what_numpy_says(tmp_path: Path) -> None:
    data, labels = images(7)
    raw = python2_pickle(data, labels)
    assert np.array_equal(pickle.loads(raw, encoding="latin1")["data"], data)  # the format is real
    (tmp_path / "test_batch").write_bytes(raw)
    pixels, found = read_batches(tmp_path, TEST_FILES)
    assert np.array_equal(pixels, data.reshape(-1, 3, 32, 32))
    assert found.tolist() == labels


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_python3_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int, as_bytes: bool) -> None:
    data, labels = images(5)
    keys: tuple[Any, Any] = (b"data", b"labels") if as_bytes else ("data", "labels")
    content = {keys[0]: data, keys[1]: [np.int64(label) for label in labels]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    pixels, found = read_batches(tmp_path, TEST_FILES)
    assert np.array_equal(pixels.reshape(5, -1), data)
    assert found.tolist() == labels


def test_numpy_1_names_are_read(tmp_path: Path) -> None:
    data, labels = images(3)
    raw = pickle.dumps({"data": data, "labels": labels}, protocol=2)
    (tmp_path / "test_batch").write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert np.array_equal(read_batches(tmp_path, TEST_FILES)[0].reshape(3, -1), data)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing_and_the_message_names_the_global(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "owned"
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": _Malicious(marker)}, protocol=protocol))
    with pytest.raises(RecordError, match=r"test_batch: refused: .*(posix|nt)\.mkdir"):
        read_batches(tmp_path, TEST_FILES)
    assert not marker.exists()


@pytest.mark.parametrize(
    "attribute", ["numpy.ndarray.tofile", "builtins.eval", "numpy._core.multiarray.set_string_function"]
)
def test_dotted_names_do_not_reach_attributes_of_allowed_globals(tmp_path: Path, attribute: str) -> None:
    module, _, name = attribute.partition(".") if "_core" not in attribute else attribute.rpartition(".")
    raw = (
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93."
    )
    (tmp_path / "test_batch").write_bytes(raw)
    with pytest.raises(RecordError, match="refused"):
        read_batches(tmp_path, TEST_FILES)


def test_a_truncated_file_is_a_clear_error(tmp_path: Path) -> None:
    raw = pickle.dumps({"data": images(3)[0], "labels": [0, 1, 2]})
    (tmp_path / "test_batch").write_bytes(raw[:-2000])
    with pytest.raises(RecordError, match="not a readable pickle"):
        read_batches(tmp_path, TEST_FILES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dictionary with 'data' and 'labels', found list"),
        ({"data": np.zeros((2, 3072), np.uint8)}, r"found \['data'\]"),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [0, 1]}, r"\(N, 3072\) uint8, found \(2, 100\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "2 whole-number labels"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "0 to 9, found 10"),
    ],
)
def test_other_contents_are_told(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(RecordError, match=message):
        read_batches(tmp_path, TEST_FILES)


def test_missing_batch_files_are_named(tmp_path: Path) -> None:
    data, labels = images(2)
    for name in TRAIN_FILES[:3]:
        (tmp_path / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    with pytest.raises(RecordError, match="missing: data_batch_4, data_batch_5"):
        read_batches(tmp_path, TRAIN_FILES)
