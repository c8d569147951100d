"""Plain data, as pickles of strangers may hold it: built by functions of this package from what a pickle says of it."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

_MAX_ITEMS = 4_000_000  # of a value written out in full
_MAX_DEPTH = 100
_TYPES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
FOREIGN = object()  # stands for whatever a foreign global would have made


class NotPlainError(ValueError):
    """A pickle is whole, but holds what is no plain data."""


@dataclass(frozen=True)
class Maker:
    """A function of ours that stands for a global; nothing else is ever called."""

    make: Callable[..., object]


@dataclass(eq=False)
class Unbuilt:
    """An object that a BUILD opcode will turn into a value, with the places of the memo that hold it until then."""

    build: Callable[[object], object]
    memorized: list[object] = field(default_factory=list)


def key_of(value: object) -> object:
    """The value, as the key of a dictionary or a member of a set.

    Keys are scalars: hashing nested tuples, or long numbers that collide, could take for ever.

    Raises:
        NotPlainError: If it is anything else.
    """
    scalar = value is None or isinstance(value, (str, bytes, float, np.generic)) or value is FOREIGN
    if scalar or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    if isinstance(value, tuple) and len(value) <= 8:
        return tuple(
            part if not isinstance(part, tuple) else _refuse("nested tuples as keys") for part in map(key_of, value)
        )
    return _refuse(f"{type(value).__name__} as a key")


def _refuse(what: str) -> NoReturn:
    raise NotPlainError(f"holds {what}; only plain data is expected")


def require_bounded(value: object) -> None:
    """Refuse containers that nest without end, or that references to each other make huge.

    Raises:
        NotPlainError: If they do, or a function is among what they hold.
    """
    _measure(value, {}, depth=0)


def _measure(value: object, known: dict[int, tuple[int, int]], *, depth: int) -> tuple[int, int]:
    """Height and number of items of a value written out in full."""
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        if isinstance(value, (Maker, Unbuilt)):
            _refuse("a function")
        return 0, 1
    if not value:
        return 1, 1
    if depth > _MAX_DEPTH:
        _refuse(f"containers nested deeper than {_MAX_DEPTH}, or in themselves")
    if id(value) not in known:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        sizes = [_measure(part, known, depth=depth + 1) for part in parts]
        known[id(value)] = 1 + max((size[0] for size in sizes), default=0), 1 + sum(size[1] for size in sizes)
    height, items = known[id(value)]
    if height + depth > _MAX_DEPTH or items > _MAX_ITEMS:
        _refuse("containers that refer to each other without measure")
    return height, items


def _dtype(code: object, *_: object) -> Unbuilt:
    text = code.decode("latin1") if isinstance(code, bytes) else code

    def build(state: object) -> object:
        if not isinstance(text, str) or text not in _TYPES:
            return text  # the array will say so, after the names of all that it would have run
        big = isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">")
        return np.dtype(text).newbyteorder(">" if big else "<")

    return Unbuilt(build)


def _array(
    shape: object, dtype: object, raw: object, *, fortran: object
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """An array of exactly the bytes that the file holds for it."""
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 text
    if not isinstance(dtype, np.dtype):
        _refuse(f"an array of type {str(dtype)[:40]!r}, not of numbers")
    if not isinstance(data, (bytes, bytearray)):
        _refuse("an array without its bytes")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(side) is int and side >= 0 for side in shape):
        _refuse("an array without a shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        _refuse(f"an array whose {len(data)} bytes are not what its shape needs")
    return np.frombuffer(data, dtype=dtype).copy().reshape(shape, order="F" if fortran else "C")


def _array_of_state(state: object) -> object:
    if not isinstance(state, tuple) or len(state) != 5:
        _refuse("an array of an unknown version")
    _, shape, dtype, fortran, raw = state
    return _array(shape, dtype, raw, fortran=fortran)


def module_versions(state: object) -> dict[str, object]:
    """The one attribute of a state dict that loading needs: which version of its class each module is of."""
    held = state.get("_metadata") if isinstance(state, dict) else None
    if not isinstance(held, dict):
        return {}
    versions = ((name, entry.get("version")) for name, entry in held.items() if isinstance(entry, dict))
    return {
        "_metadata": OrderedDict((name, {"version": version}) for name, version in versions if type(version) is int)
    }


def _ordered(items: object = ()) -> OrderedDict[object, object]:
    pairs = items.items() if isinstance(items, dict) else items
    if not isinstance(pairs, Iterable):
        _refuse("an OrderedDict of no pairs")
    return OrderedDict((key_of(key), value) for key, value in pairs)


def _bytes(text: object = "", encoding: object = "latin1") -> bytes:
    """Python 3 writes bytes as text for old protocols, always as latin1."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        _refuse("bytes in an unknown encoding")
    return text.encode("latin1")


def _set(items: object = ()) -> set[object]:
    return set(map(key_of, items)) if isinstance(items, (list, tuple)) else _refuse("a set of no list")


PLAIN: Mapping[str, object] = {
    "collections.OrderedDict": Maker(_ordered),
    "collections.Counter": Maker(lambda counts=(): Counter(dict(_ordered(counts)))),
    "builtins.set": Maker(_set),
    "builtins.frozenset": Maker(lambda items=(): frozenset(_set(items))),
    "builtins.bytes": Maker(_bytes),
    "builtins.bytearray": Maker(lambda *parts: bytearray(_bytes(*parts))),
    "builtins.complex": Maker(complex),
    "_codecs.encode": Maker(_bytes),
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": Maker(_dtype),
    "numpy._core.multiarray._reconstruct": Maker(lambda *_: Unbuilt(_array_of_state)),
    "numpy._core.multiarray.scalar": Maker(lambda dtype, raw: _array((), dtype, raw, fortran=False)[()]),
    "numpy._core.numeric._frombuffer": Maker(
        lambda raw, dtype, shape, order="C": _array(shape, dtype, raw, fortran=order == "F")
    ),
}
