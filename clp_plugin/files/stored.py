"""A checkpoint as it lies on disk: what it holds and in which form, and the same form written again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Literal

import torch
from torch import Tensor

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import write_atomically
from clp_plugin.files.formats import Form, form_of
from clp_plugin.files.marks import marked_safetensors, marked_zip, weights_to_write
from clp_plugin.files.pickled_classes import PickledClasses
from clp_plugin.files.shards import find_index, read_shards, write_shards
from clp_plugin.files.torch_files import read_pickle_checkpoint

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pickle", ".model", ".weights")


@dataclass(frozen=True, eq=False)
class StoredCheckpoint:
    """The content of a checkpoint file.

    Attributes:
        path: The file; of weights in several files their index.
        content: A state dict, a container of state dicts, or a whole module.
        form: The format that it was written in: torch.save's (archive, or as before torch 1.6), torch.jit.save's or
            safetensors.
        metadata: Texts in the header of a safetensors file.
        classes: The classes of the user's own file that the pickle names.
    """

    path: Path
    content: object
    form: Form | Literal["shards"]
    metadata: Mapping[str, str] = field(default_factory=dict)
    classes: PickledClasses = field(default_factory=PickledClasses)


def read_stored(path: Path, *, trust: bool = False, classes_in: ModuleType | None = None) -> StoredCheckpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: A file of torch.save or safetensors whatever its suffix; an index of several files; or their folder.
        trust: Allow pickles that run code.
        classes_in: Module in which to look for classes of a whole pickled network that cannot be imported.

    Raises:
        CheckpointError: If it is missing, damaged, something else, or needs ``trust``.
    """
    if (index := find_index(path)) is not None:
        return StoredCheckpoint(
            index, read_shards(index, lambda shard: read_pickle_checkpoint(shard, trust=trust)), "shards"
        )
    classes = PickledClasses(classes_in)
    content = read_pickle_checkpoint(path, trust=trust, classes=classes)
    with path.open("rb") as file:
        form = form_of(file)
    metadata = _metadata(path) if form == "safetensors" else {}
    return StoredCheckpoint(path, content, form, metadata, classes)


def require_writable_form(stored: StoredCheckpoint, path: Path) -> None:
    """Refuse a place that the checkpoint cannot be written to, before any work is done.

    Raises:
        ConfigError: If the suffix says another kind of file, the place is the checkpoint itself, or other weights are there.
    """
    source = stored.path.parent if stored.form == "shards" else stored.path
    if path.resolve() in (source.resolve(), stored.path.resolve()):
        raise ConfigError(f"--repair {path} is the checkpoint itself, which stays as it is; give another name")
    suffixes = (".safetensors", *TORCH_SUFFIXES, *([] if stored.form == "shards" else [stored.path.suffix]))
    if stored.form == "shards" and not path.suffix:
        if path.exists():
            raise ConfigError(
                f"--repair {path}: there is something of that name already; give the name of a new folder"
            )
    elif path.suffix not in suffixes:
        known = ", ".join(dict.fromkeys(filter(None, suffixes)))
        raise ConfigError(f"--repair {path}: expected a name ending in {known}")
    else:
        weights_to_write(path)


def write_like(stored: StoredCheckpoint, content: object, weights: Mapping[str, Tensor], path: Path) -> None:
    """Write what was changed in the form that it was read in.

    Args:
        stored: The checkpoint as it was read.
        content: The changed checkpoint.
        weights: Stored key to tensor, for the part that was changed: all that ``.safetensors`` can hold, and what files
            of torch.save hold when safetensors was read.
        path: A file ending in ``.safetensors`` or in a suffix of torch.save; of weights in several files, a new folder.

    Raises:
        ConfigError: If it cannot be written there.
    """
    require_writable_form(stored, path)
    if stored.form == "shards" and not path.suffix:
        write_shards(weights, stored.path, path, _write_shard)
    elif path.suffix == ".safetensors" or (stored.form == "safetensors" and path.suffix == stored.path.suffix):
        _write_safetensors(weights, path, stored.metadata or {"format": "pt"})
    elif stored.form in ("safetensors", "shards"):
        write_atomically(path, marked_zip(lambda file: torch.save(dict(weights), file)))
    else:
        with stored.classes.importable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the source code of classes, and the future of TorchScript
            write_atomically(path, marked_zip(partial(_WRITERS[stored.form], content)))


_WRITERS: Mapping[str, Callable[[object, IO[bytes]], object]] = {
    "torch": torch.save,
    "legacy": partial(torch.save, _use_new_zipfile_serialization=False),
    "torchscript": torch.jit.save,
}


def _write_shard(weights: Mapping[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        _write_safetensors(weights, path, {"format": "pt"})
    else:
        write_atomically(path, lambda file: torch.save(dict(weights), file))


def _write_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save

    tensors = {key: value.detach().clone().contiguous() for key, value in weights.items() if isinstance(value, Tensor)}
    write_atomically(path, marked_safetensors(save(tensors, metadata=dict(metadata))))


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})
