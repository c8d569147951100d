"""Weights in several files: an index that says which tensor lies where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import CheckpointError
from clp_plugin.files.atomic import staged_folder
from clp_plugin.files.reading import read_json

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".index.json"


def find_index(path: Path) -> Path | None:
    """The index that a path names or, if it is a folder, the one in it; None if there is none.

    Raises:
        CheckpointError: If a folder has several.
    """
    if path.is_file():
        return path if path.name.endswith(_SUFFIX) else None
    found = sorted(path.glob(f"*{_SUFFIX}"))
    if len(found) > 1:
        raise CheckpointError(
            f"{path} has several indices: {', '.join(index.name for index in found)}; name one of them"
        )
    return found[0] if found else None


def read_weight_map(index: Path) -> dict[str, str]:
    """Key of each tensor to the name of the file beside the index that holds it.

    Raises:
        CheckpointError: If the index is damaged, or names a file that is missing or lies elsewhere.
    """
    content: Any = read_json(index, raises=CheckpointError)
    try:
        weight_map = content["weight_map"]
        shards = {str(key): str(shard) for key, shard in weight_map.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: expected an index with weight_map: {{KEY: FILE}}, found {type(error).__name__}: {error}"
        ) from error
    for shard in dict.fromkeys(shards.values()):
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise CheckpointError(f"{index} names {shard!r}, which does not lie beside it; copy all of its files")
    return shards


def read_shards(index: Path, read: Callable[[Path], object]) -> dict[str, Tensor]:
    """All tensors, in the order of the index.

    Args:
        index: The index file.
        read: Reads one of its files.

    Raises:
        CheckpointError: If a file lacks a tensor that the index promises.
    """
    weight_map = read_weight_map(index)
    held = {shard: read(index.parent / shard) for shard in dict.fromkeys(weight_map.values())}
    weights = {}
    for key, shard in weight_map.items():
        tensors = held[shard]
        if not isinstance(tensors, Mapping) or key not in tensors:
            raise CheckpointError(f"{index.parent / shard} lacks {key!r}, which {index.name} promises; copy it again")
        weights[key] = tensors[key]
    return weights


def write_shards(
    weights: Mapping[str, Tensor], index: Path, folder: Path, write: Callable[[Mapping[str, Tensor], Path], object]
) -> None:
    """The same files with other tensors, in a new folder, in one step.

    Args:
        weights: Key to tensor, the keys of the index.
        index: The index file of the weights as they were read.
        folder: The folder to make.
        write: Function that writes the tensors of one file.
    """
    weight_map = read_weight_map(index)
    with staged_folder(folder) as staged:
        for shard in dict.fromkeys(weight_map.values()):
            write({key: weights[key] for key, home in weight_map.items() if home == shard}, staged / shard)
        (staged / index.name).write_bytes(index.read_bytes())
