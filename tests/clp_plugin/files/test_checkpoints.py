"""Checkpoints of strangers: what loads, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.files.checkpoints import (
    load_checkpoint,
    save_weights,
)
from clp_plugin.files.torch_files import read_pickle_checkpoint


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle2", "pickle4", "pickle5"])
def test_malicious_pickle_runs_nothing_and_is_named(tmp_path: Path, form: str) -> None:
    victim, path = tmp_path / "owned", tmp_path / "evil.pt"
    content = {"state_dict": net().state_dict(), "payload": Payload(victim)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=rf"{os.mkdir.__module__}\.mkdir.*--trust"):
        load_checkpoint(path)
    assert not victim.exists()
    if not form.startswith("pickle"):  # torch.load does not read bare pickles, trusted or not
        read_pickle_checkpoint(path, trust=True)
        assert victim.exists(), "the payload of this test must be able to run, or the test proves nothing"


def test_the_message_names_what_is_foreign_and_not_what_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "args.pt"
    torch.save({"net": net().half().state_dict(), "x": np.ones(2), "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(CheckpointError, match=r"global argparse\.Namespace; expected"):
        load_checkpoint(path)
    assert same(load_checkpoint(path, trust=True), net().half().state_dict())


def test_other_functions_of_the_same_numpy_module_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"x": np.fromfile}, path)
    with pytest.raises(CheckpointError, match=r"global numpy\.\S*fromfile.*--trust"):
        read_pickle_checkpoint(path)


@pytest.mark.parametrize("home", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_arrays_and_scalars_of_both_numpy_generations_load(tmp_path: Path, home: bytes) -> None:
    path = tmp_path / "arrays.pt"
    stored = OrderedDict(
        ints=np.arange(5), bytes=np.array([[3, 250]], dtype=np.uint8), flag=np.array([True]), scalar=np.float64(0.1)
    )
    torch.save(stored, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for written in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(b"c" + written + b"\n", b"c" + home + b"\n")
    path.write_bytes(data)
    loaded = read_pickle_checkpoint(path)
    assert isinstance(loaded, OrderedDict)
    for key, value in stored.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].dtype == value.dtype


def test_object_arrays_cannot_smuggle_a_payload(tmp_path: Path) -> None:
    victim, path = tmp_path / "owned", tmp_path / "evil.pt"
    torch.save({"a": np.array([Payload(victim)], dtype=object)}, path)
    with pytest.raises(CheckpointError, match=r"mkdir"):
        read_pickle_checkpoint(path)
    assert not victim.exists()


@pytest.mark.parametrize(("array", "kind"), [(np.array(["a"]), "U1"), (np.array(["a", 1], "O"), "O8")])
def test_arrays_that_are_not_numbers_are_refused_by_type(tmp_path: Path, array: Any, kind: str) -> None:
    torch.save({"names": array}, tmp_path / "names.pt")
    with pytest.raises(CheckpointError, match=rf"array of type '{kind}', not of numbers.*--trust"):
        read_pickle_checkpoint(tmp_path / "names.pt")


def test_torchscript_archive_is_refused_without_trust(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net().eval(), torch.zeros(1, 3, 3, 3)).save(str(path))
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*--trust"):
        load_checkpoint(path)
    assert same(load_checkpoint(path, trust=True), dict(net().state_dict()))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_truncated_file_says_so(tmp_path: Path, legacy: bool, kept: float) -> None:
    path = tmp_path / "model.pt"
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=r"model\.pt .*bytes.* cannot be read as a checkpoint.*truncated"):
        load_checkpoint(path)


def test_truncated_safetensors_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint.*truncated"):
        load_checkpoint(path)


def test_text_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("404 not found")
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_empty_folder_and_missing_paths_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pt is empty"):
        load_checkpoint(tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match=r"is a folder; expected a checkpoint file"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read .*nowhere.pt: No such file"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_unreadable_path_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.pt"
    path.write_bytes(b"x")

    def refuse(self: Path, mode: str = "r") -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    with pytest.raises(CheckpointError, match=r"cannot read .*locked.pt: Permission denied"):
        load_checkpoint(path)


@pytest.mark.parametrize("nested", ["state_dict", "model_state_dict", "model", "net"])
def test_nested_state_dict_is_found(tmp_path: Path, nested: str) -> None:
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, nested: net().state_dict(), "optimizer": {"lr": 0.1}}, path)
    assert same(load_checkpoint(path), dict(net().state_dict()))


def test_state_dict_within_a_nested_dict_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": {"state_dict": net().state_dict(), "epoch": 1}}, path)
    assert same(load_checkpoint(path), dict(net().state_dict()))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"model": {"model": {"model": {}}}}}])
def test_file_without_state_dict_lists_what_it_has(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds no state dict: found .*; expected parameter names"):
        load_checkpoint(path)


def test_whole_module_is_refused_without_trust_and_gives_its_weights_with_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(net(), path)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.container\.Sequential.*and \d+ more.*--trust"):
        load_checkpoint(path)
    assert same(load_checkpoint(path, trust=True), dict(net().state_dict()))


def test_trusted_file_whose_classes_are_gone_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(argparse.Namespace(lr=0.1), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"argparse", b"nosuchmo"))
    with pytest.raises(CheckpointError, match=r"nosuchmo.*must be importable"):
        load_checkpoint(path, trust=True)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_round_trip_in_their_own_precision(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    path = tmp_path / f"model{suffix}"
    weights = net().to(dtype).state_dict()
    save_weights(weights, path)
    loaded = load_checkpoint(path)
    assert {key: loaded[key].dtype for key in loaded} == {key: weights[key].dtype for key in weights}
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tied_strided_and_partial_tensors_are_stored_as_copies(tmp_path: Path, suffix: str) -> None:
    base = torch.arange(4096.0).view(64, 64)
    weights = {"a": base[:2], "b": base[:2], "t": base[:2].T, "p": nn.Parameter(base[3])}
    path = tmp_path / f"model{suffix}"
    save_weights(weights, path)
    loaded = load_checkpoint(path)
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == 4
    assert path.stat().st_size < 4096 * 4, "the whole of base must not be stored for the few rows asked for"


def test_nan_weights_load_for_scoring_to_report(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.tensor([float("nan"), 1.0])}, path)
    assert torch.isnan(load_checkpoint(path)["w"]).tolist() == [True, False]


def test_weights_of_another_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a name ending in \.safetensors"):
        save_weights({}, tmp_path / "model.onnx")
