"""Files of torch.save are read as torch reads them, and what they declare beyond what they hold is refused."""

from __future__ import annotations

import io
import math
import pickle
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clp_plugin.errors import CheckpointError, MaskError
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.types import Mask

DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
ZIP_DTYPES = "float8_e4m3fn uint16 uint32 uint64".split()  # no place in the legacy format


class Calls:
    """Pickles as a call of ``function``, followed by ``state`` if there is one."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def array_with(state: tuple[object, ...]) -> Calls:
    make, arguments, _ = np.zeros(1).__reduce__()  # type: ignore[misc]
    return Calls(make, *arguments, state=state)


def tensor_with(offset: object, size: object, stride: object, *, held: int = 8) -> Calls:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the class that torch.save still writes
        storage = torch.zeros(held).storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def torch_saves(dtype: torch.dtype) -> bool:
    try:
        torch.save(torch.zeros(1).to(dtype), io.BytesIO())
    except KeyError:  # torch 2.4 has no storage for the unsigned ones
        return False
    return True


def refused(path: Path, content: object, match: str, *, legacy: bool = False) -> None:
    torch.save({"w": content}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=match):
        read_pickle_checkpoint(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_every_dtype_and_layout_is_read_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).view(4, 6)
    dtypes = {name: getattr(torch, name) for name in (DTYPES if legacy else DTYPES + ZIP_DTYPES)}
    content: dict[str, Any] = {
        **{name: torch.arange(6).to(dtype) for name, dtype in dtypes.items() if name in DTYPES or torch_saves(dtype)},
        "transposed": base.T, "part": base[1:3, ::2], "empty": torch.empty(0, 3), "scalar": torch.tensor(3.0),
        "expanded": torch.ones(1).expand(5), "parameter": torch.nn.Parameter(base[0]),
        "plain": [None, True, 2**70, 1.5, 2j, "ä", b"b", bytearray(b"c"), (1, (2,)), {3}, frozenset({4}), torch.Size([1])],
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    found: Any = read_pickle_checkpoint(tmp_path / "x.pt")
    wanted = torch.load(tmp_path / "x.pt", weights_only=False)
    assert found.pop("plain") == wanted.pop("plain")
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape, found[key].stride()) == (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        assert (
            found[key].contiguous().view(-1).view(torch.uint8).tolist()
            == tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()
        ), key
    assert found["transposed"].untyped_storage().data_ptr() == found["part"].untyped_storage().data_ptr()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (array_with((1, (1000,), np.dtype(object), False, ["short"])), "array of type 'O8'"),
        (array_with((1, (1000,), np.dtype("f8"), False, b"short")), "5 bytes are not what its shape needs"),
        (array_with((1, (2**62, 4), np.dtype("u1"), False, b"")), "0 bytes are not what its shape needs"),
        (array_with((1, (-1,), np.dtype("u1"), False, b"")), "array without a shape"),
        (array_with((1, (1,), np.dtype("M8[s]"), False, b"12345678")), "array of type 'M8'"),
        (array_with((1, (1,), np.dtype([("a", "O")]), False, [1])), "array of type"),
    ],
)
def test_arrays_hold_exactly_the_bytes_that_the_file_has(
    tmp_path: Path, content: object, match: str, legacy: bool
) -> None:
    refused(tmp_path / "x.pt", content, match, legacy=legacy)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (tensor_with(0, (2**27,), (0,)), "declares more data than it holds"),
        (tensor_with(0, (2**40, 2**40), (0, 0)), "declares more data than it holds"),
        (tensor_with(0, (9,), (1,)), "beyond its storage"),
        (tensor_with(8, (1,), (1,)), "beyond its storage"),
        (tensor_with(0, (2, 2), (7, 1)), "shape .* beyond"),
        (tensor_with(-1, (1,), (1,)), "damaged"),
        (tensor_with(0, (2,), (-1,)), "damaged"),
        (tensor_with(0, (2,), (1, 1)), "damaged"),
        (tensor_with(0, (True,), (1,)), "damaged"),
        (tensor_with(0, (2**64,), (0,)), "damaged"),
    ],
)
def test_tensors_lie_within_their_storage(tmp_path: Path, content: object, match: str, legacy: bool) -> None:
    refused(tmp_path / "x.pt", content, match, legacy=legacy)


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = (value, value)
    return value


def within_itself() -> object:
    value: list[object] = []
    value.append(value)
    return value


def deep_key(depth: int) -> bytes:
    """A pickle of a dictionary whose key takes 2**depth steps to hash."""
    return b"\x80\x02})" + b"2\x86" * depth + b"Ns."


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("content", "match"), [(nested(60), "refer to each other"), (within_itself(), "nested deeper|in themselves")]
)
def test_references_do_not_multiply(tmp_path: Path, content: object, match: str) -> None:
    refused(tmp_path / "x.pt", content, match)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (deep_key(60), "as keys"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "nested deeper"),
        (b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".", "whole number of 2039 bits"),
        (b"\x80\x04B\xff\xff\xff\xff.", "expected 4294967295 bytes"),
        (b"\x80\x04Nr\xff\xff\xff\xff.", None),  # a place in the memo costs nothing
        (b"\x80\x04\x82\x01.", "opcode EXT1"),
        (b"\x80\x04ccollections\nOrderedDict\n.", "a function"),
        (b"\x80\x04}}b.", "sets attributes of dict"),
        (b"\x80\x04NQ.", "storage is damaged"),
        (b"\x80\x04t.", "damaged pickle"),
        (b"\x80\x04", "pickle exhausted"),
    ],
    ids=lambda value: "nothing" if value is None else value[:12],  # one of them is 3 MB long
)
def test_pickles_cost_what_their_size_warrants(tmp_path: Path, pickled: bytes, match: str | None) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    if match is None:
        assert read_pickle_checkpoint(tmp_path / "x.pt") is None
        return
    with pytest.raises(CheckpointError, match=match):
        read_pickle_checkpoint(tmp_path / "x.pt")


def test_a_pickle_of_too_many_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"]" * 1000 + b".")
    read_pickle_checkpoint(tmp_path / "x.pt")
    monkeypatch.setattr("clp_plugin.files.pickles._MAX_STEPS", 1000)
    with pytest.raises(CheckpointError, match="too many steps"):
        read_pickle_checkpoint(tmp_path / "x.pt")


def test_a_zip_that_holds_more_than_it_is_long_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 24)}, saved := io.BytesIO())
    with (
        zipfile.ZipFile(saved) as source,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    assert (tmp_path / "x.pt").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="declares more data than it holds"):
        read_pickle_checkpoint(tmp_path / "x.pt")


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    weights = torch.rand(10_000)
    torch.save({"w": weights}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    middle = whole.index(weights.numpy().tobytes()) + 20_000
    (tmp_path / "x.pt").write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match=r"x\.pt .*Bad CRC-32"):
        read_pickle_checkpoint(tmp_path / "x.pt")


def test_files_that_torch_wrote_without_checksums_load(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_pickle_checkpoint(tmp_path / "x.pt")["w"].tolist() == [0, 1, 2]  # type: ignore[index]


def test_many_threads_load_at_once_and_torch_stays_as_it_was(tmp_path: Path) -> None:
    torch.save({"index": np.arange(1000)}, tmp_path / "x.pt")
    before = torch.serialization.get_safe_globals()
    sums: list[float] = []

    def load() -> None:
        for _ in range(20):
            sums.append(read_pickle_checkpoint(tmp_path / "x.pt")["index"].sum())  # type: ignore[index]

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [math.comb(1000, 2)] * 60
    assert torch.serialization.get_safe_globals() == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=True)


def test_a_mask_is_no_wider_than_any_layer() -> None:
    with pytest.raises(MaskError, match="expected"):
        Mask.from_json({"conv": {"channels": 2**60, "pruned": []}})
