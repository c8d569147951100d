"""Files that are no checkpoint of PyTorch's are named by their content, whatever their suffix says."""

from __future__ import annotations

import gzip
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clp_plugin.errors import CheckpointError
from clp_plugin.files.formats import foreign_format, form_of
from clp_plugin.files.torch_files import read_pickle_checkpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
# ir_version 8, producer "pytorch" 2.1, then an empty graph: the first bytes that torch.onnx.export writes.
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x032.1:\x00"


def zipped(names: list[str]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def tarred(path: Path) -> None:
    torch.save({"w": torch.ones(1)}, path.with_name("inner.pt"))
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("inner.pt"), "inner.pt")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "Git LFS": (lambda path: path.write_bytes(LFS), "Git LFS pointer.*git lfs pull"),
    "HTML": (
        lambda path: path.write_text("\n <!DOCTYPE html><html><body>Sign in</body></html>"),
        "HTML page.*download",
    ),
    "ONNX": (lambda path: path.write_bytes(ONNX), "ONNX model.*PyTorch checkpoint"),
    "ONNX without producer": (lambda path: path.write_bytes(b"\x08\x07:\x02\x0a\x00"), "ONNX model"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5 file.*Keras"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "gzip: unpack"),
    "tar": (tarred, "tar archive: unpack"),
    "zip": (zipped(["weights/model.pt", "readme.txt"]), r"zip archive of weights/model\.pt, readme\.txt.*unpack"),
    "npz": (lambda path: np.savez(path.open("wb"), x=np.ones(2)), "numpy arrays"),
    "Keras": (zipped(["config.json", "model.weights.h5"]), "Keras model"),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    write, message = FOREIGN[name]
    path = tmp_path / f"model{suffix}"
    write(path)
    for trust in (False, True):
        with pytest.raises(CheckpointError, match=message):
            read_pickle_checkpoint(path, trust=trust)


@pytest.mark.parametrize("form", ["torch", "legacy", "torchscript", "safetensors"])
def test_checkpoints_are_known_by_their_content(tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    model, path = nn.Linear(2, 3), tmp_path / "model.weights"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "safetensors":
            save_file(model.state_dict(), path)
        elif form == "torchscript":
            torch.jit.script(model).save(str(path))
        else:
            torch.save({"a" * 300: model.state_dict()}, path, _use_new_zipfile_serialization=form == "torch")
    with path.open("rb") as file:
        assert form_of(file) == form
        assert foreign_format(file) is None
        assert file.tell() == 0
    if form != "torchscript":
        assert read_pickle_checkpoint(path)


def test_a_large_header_does_not_make_a_pickle_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes((2**40).to_bytes(8, "little") + json.dumps({"a": 1}).encode())
    with path.open("rb") as file:
        assert form_of(file) != "safetensors"
