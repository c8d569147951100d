"""Arrays of strangers: what a file declares is bounded by what it holds, and only numbers come out."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clp_plugin.errors import RecordError
from clp_plugin.files.arrays import read_arrays


def header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def refused(path: Path) -> str:
    with pytest.raises(RecordError, match="not a readable file of numpy arrays") as caught:
        read_arrays(path, raises=RecordError)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "<i8", "<f4", "?"])
def test_arrays_come_back_as_numpy_wrote_them(tmp_path: Path, dtype: str) -> None:
    arrays = {"x": np.arange(24).reshape(2, 3, 4).astype(dtype), "y": np.asfortranarray(np.ones((2, 3), dtype))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    np.save(tmp_path / "a.npy", arrays["y"])
    found = read_arrays(tmp_path / "a.npz", raises=RecordError)
    assert set(found) == {"x", "y"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npy", raises=RecordError)["x"], arrays["y"])


def test_a_small_archive_that_unpacks_to_much_is_refused_at_once(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(header("(200000000,)"))
        for _ in range(200):
            file.write(bytes(10**6))
    assert "claim to unpack to" in refused(tmp_path / "bomb.npz")


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(2, 3)", "(-1,)", "(1000000, 1000000, 0)"])
def test_a_shape_that_the_bytes_do_not_fill_is_refused(tmp_path: Path, shape: str) -> None:
    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(5))
    refused(tmp_path / "a.npy")


def test_objects_never_reach_an_unpickler(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "expected numbers" in refused(tmp_path / "a.npy")


def test_a_flipped_bit_in_an_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(1000, np.uint8))
    content = bytearray(buffer.getvalue())
    content[700] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    assert "CRC" in refused(tmp_path / "a.npz")


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(RecordError, match="ordinary file"):
        read_arrays(tmp_path / "pipe.npy", raises=RecordError)
