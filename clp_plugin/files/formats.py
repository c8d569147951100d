"""Telling a file's format by its content: people rename files, and downloads bring pages instead of weights."""

from __future__ import annotations

import zipfile
from typing import IO, Literal

Form = Literal["torch", "legacy", "torchscript", "safetensors"]

_HEAD = 4096  # bytes looked at
_LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors allows

_MAGIC = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file: run `git lfs pull` where it came from"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow): its weights have to be exported to a PyTorch network first"),
    (b"GGUF", "a GGUF file (llama.cpp), which holds no image classifier of PyTorch's"),
    (b"\x93NUMPY", "a numpy array; expected a state dict"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
)  # fmt: skip
_ZIP = b"PK\x03\x04"
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
# An ONNX file is a protobuf message: ir_version, then the producer's name, or the graph or the operator sets at once.
_ONNX_VERSIONS = range(1, 32)
_ONNX_NEXT = b"\x12\x1a\x22\x3a\x42"


def foreign_format(file: IO[bytes]) -> str | None:
    """Say what a file is that is no checkpoint of PyTorch's, and what to do; None for what may be one.

    Args:
        file: Open for reading; wound back afterwards.
    """
    head = _head(file)
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML_STARTS):
        return "an HTML page, not a checkpoint: the download went to a login or error page; download the file again"
    if head[:1] == b"\x08" and len(head) > 2 and head[1] in _ONNX_VERSIONS and head[2] in _ONNX_NEXT:
        return "an ONNX model: the layers are gone from it; use the PyTorch checkpoint that it was exported from"
    if head.startswith(b"ustar", 257) and not _holds_tensors_in_tar(head):
        return "a tar archive: unpack it first"
    return _foreign_archive(_members(file)) if head.startswith(_ZIP) else None


def form_of(file: IO[bytes]) -> Form:
    """How a checkpoint was written: by safetensors (the length of a JSON header, then the header), or by torch.

    Args:
        file: Open for reading; wound back afterwards.
    """
    head = _head(file)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    if not head.startswith(_ZIP):
        return "legacy"
    scripted = any(name.partition("/")[2].startswith("code/") for name in _members(file))
    return "torchscript" if scripted else "torch"


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    return head


def _foreign_archive(names: list[str]) -> str | None:
    if any(name.endswith("data.pkl") for name in names) or not names:
        return None
    if all(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays (.npz), not a state dict"
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras model: its weights have to be exported to a PyTorch network first"
    more = ", ..." if len(names) > 3 else ""
    return f"a zip archive of {', '.join(names[:3])}{more}, none of which torch.save wrote: unpack it first"


def _members(file: IO[bytes]) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError):
        return []
    finally:
        file.seek(0)


def _holds_tensors_in_tar(head: bytes) -> bool:
    """The format of torch before 0.1.10: members named sys_info, pickle, storages, tensors."""
    return head.partition(b"\0")[0] in (b"sys_info", b"./sys_info", b"pickle", b"storages", b"tensors")
