"""The weights within a checkpoint: the parts that a file holds, the one to take, and its replacement."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clp_plugin.errors import CheckpointError

# Where the trained network lies, by habit; the first of these is taken before all others.
_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "netC", "classifier", "weights")
_DEPTH = 4
_MAX_ENTRIES = 64  # of a list; longer ones hold data


@dataclass(frozen=True, eq=False)
class Part:
    """The weights of one network within a checkpoint.

    Attributes:
        path: Keys and positions that lead to its holder; empty where the file itself is the holder.
        holder: A state dict, perhaps with other entries among the tensors, or a whole module.
        prefix: The beginning of the stored keys of this part; empty for all of them.
    """

    path: tuple[str | int, ...]
    holder: Mapping[str, Any] | nn.Module
    prefix: str = ""

    @property
    def name(self) -> str:
        """The name by which ``--key`` takes this part."""
        return ".".join(map(str, (*self.path, *([self.prefix.removesuffix(".")] if self.prefix else []))))

    @property
    def weights(self) -> OrderedDict[str, Any]:
        """Stored key to tensor, with the versions of the modules where the file keeps them."""
        held = self.holder.state_dict() if isinstance(self.holder, nn.Module) else self.holder
        chosen = ((key, value) for key, value in held.items() if key.startswith(self.prefix) and _is_state(key, value))
        found = OrderedDict((key, value.detach() if isinstance(value, Tensor) else value) for key, value in chosen)
        if (versions := getattr(held, "_metadata", None)) is not None:
            found._metadata = versions  # type: ignore[attr-defined]
        return found


def parts_of(loaded: object, path: Path, *, key: str | None = None) -> tuple[Part, ...]:
    """The parts of a checkpoint that may be meant, the likeliest first.

    Args:
        loaded: The object that the file holds.
        path: The file, for the message.
        key: Dotted path to the part, or to what holds it; it may run on into the keys of a flat state dict.

    Raises:
        CheckpointError: If there are no weights, or none under ``key``.
    """
    found = sorted(_parts(loaded, ()), key=lambda part: [_rank(step) for step in part.path])
    if not found:
        raise CheckpointError(
            f"{path} holds no state dict: found {_contents(loaded)}; expected parameter names with tensors, at the top or "
            "nested in dictionaries and lists"
        )
    if key is None:
        return tuple(found)
    below = [part for part in found if part.name == key or part.name.startswith(f"{key}.")]
    if below := below or [inner for part in found if (inner := _inside(part, key)) is not None]:
        return tuple(below)
    raise CheckpointError(f"{path} has no weights under --key {key}; it has: {names_of(found)}")


def names_of(parts: Sequence[Part]) -> str:
    """The parts' names and sizes, for people."""
    return ", ".join(f"{part.name or 'the file itself'} ({len(part.weights)} tensors)" for part in parts)


def beside(loaded: object, part: Part) -> tuple[str, ...]:
    """Entries along the way to a part that hold something else than weights: epoch, optimizer, accuracy."""
    here, found = loaded, []
    for step in part.path:
        if isinstance(here, Mapping):
            found += [str(key) for key, value in here.items() if key != step and not list(_parts(value, ()))]
        here = cast("Any", here)[step]
    return tuple(found)


def with_part_replaced(loaded: object, part: Part, weights: Mapping[str, Tensor]) -> object:
    """The same checkpoint with other weights in one part; all else is as it was, and ``loaded`` is not changed.

    Args:
        loaded: The object that the file holds.
        part: One of :func:`parts_of`.
        weights: Stored key to tensor; keys that are not named stay as they are.
    """
    new = _replaced(part.holder, weights)
    for depth in reversed(range(len(part.path))):
        outer: Any = loaded
        for step in part.path[:depth]:
            outer = outer[step]
        new = _with_entry(outer, part.path[depth], new)
    return new


def _replaced(holder: Mapping[str, Any] | nn.Module, weights: Mapping[str, Tensor]) -> Any:
    changed: Any = copy.deepcopy(holder) if isinstance(holder, nn.Module) else copy.copy(holder)
    if isinstance(changed, nn.Module):
        own = changed.state_dict()
        with torch.no_grad():
            for key, value in weights.items():
                own[key].copy_(value)
        return changed
    for key, value in weights.items():
        old = changed[key]
        changed[key] = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    return changed


def _with_entry(outer: Any, step: str | int, value: Any) -> Any:
    if isinstance(outer, Mapping):
        changed: Any = copy.copy(outer)
        changed[step] = value
        return changed
    entries = [value if place == step else entry for place, entry in enumerate(outer)]
    return entries if isinstance(outer, list) else tuple(entries)


def _parts(held: object, path: tuple[str | int, ...]) -> Iterator[Part]:
    if isinstance(held, nn.Module):
        yield Part(path, held)
    elif isinstance(held, Mapping) and held and all(isinstance(key, str) for key in held):
        if all(isinstance(value, Tensor) for value in held.values()):
            if not path or any(value.ndim for value in held.values()):  # counts and scores of callbacks are no weights
                yield Part(path, held)
            return
        below = [part for key, value in held.items() for part in _below(value, (*path, key))]
        flat = [key for key, value in held.items() if isinstance(value, Tensor) and value.ndim > 1]
        yield from below or ([Part(path, held)] if flat else [])
    elif isinstance(held, (list, tuple)) and len(held) <= _MAX_ENTRIES:
        for place, value in enumerate(held):
            yield from _below(value, (*path, place))


def _below(value: object, path: tuple[str | int, ...]) -> Iterator[Part]:
    if len(path) <= _DEPTH and isinstance(value, (Mapping, list, tuple, nn.Module)):
        yield from _parts(value, path)


def _rank(step: str | int) -> int:
    return _USUAL.index(step) if step in _USUAL else len(_USUAL)


def _inside(part: Part, key: str) -> Part | None:
    """The weights of a flat state dict whose keys begin with what ``key`` says beyond the part's own name."""
    if part.name and not key.startswith(f"{part.name}."):
        return None
    prefix = f"{key.removeprefix(part.name).removeprefix('.')}."
    inner = Part(part.path, part.holder, prefix)
    return inner if inner.weights else None


def _is_state(key: str, value: object) -> bool:
    return isinstance(value, Tensor) or key.rpartition(".")[2] == "_extra_state"


def _contents(loaded: object) -> str:
    if not isinstance(loaded, Mapping):
        return type(loaded).__name__
    return f"keys {', '.join(map(str, list(loaded)[:8]))}" if loaded else "an empty dict"
