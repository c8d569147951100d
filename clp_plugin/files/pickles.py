"""Plain data from pickles of strangers: an interpreter of their opcodes that calls nothing which a file names.

Containers, numbers, text and numeric numpy arrays are rebuilt, and those by functions of this package: neither Python's nor
numpy's nor torch's own unpickling ever sees the file. What a pickle may cost is bounded by its size.
"""

from __future__ import annotations

import math
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import IO, NoReturn

import numpy as np

_MAX_STEPS = 2_000_000  # opcodes and copied items: about two seconds, half a gigabyte at worst
_MAX_BITS = 128  # of a whole number; random generators have states of this size
_MAX_DEPTH = 100
_TYPES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())


class ForeignGlobalsError(ValueError):
    """A pickle asks for globals that plain data does not need; nothing of it was run.

    Attributes:
        names: Dotted names in the order of the file, without repetition.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


class NotPlainError(ValueError):
    """A pickle is whole, but holds what is no plain data."""


@dataclass(frozen=True)
class Maker:
    """A function of ours that stands for a global; nothing else is ever called."""

    make: Callable[..., object]


@dataclass(eq=False)
class _Unbuilt:
    """An object that a BUILD opcode will turn into a value, with the places of the memo that hold it until then."""

    build: Callable[[object], object]
    memorized: list[object] = field(default_factory=list)


_FOREIGN = object()  # stands for whatever a foreign global would have made


def load_plain(
    stream: IO[bytes],
    *,
    globals_: Mapping[str, object] = MappingProxyType({}),
    storage: Callable[[object], object] | None = None,
) -> object:
    """The value of one pickle, of any protocol; the stream stands behind it afterwards.

    Args:
        stream: Holds all of the pickle: a length that it declares is read, not reserved.
        globals_: Dotted name to what stands for it, a :class:`Maker` or a constant, beside those of plain data and numpy.
        storage: Gives the value of a persistent id; without it such ids are refused.

    Raises:
        ForeignGlobalsError: If it asks for any other global.
        NotPlainError: If it holds arrays of other things than numbers, or containers too deep or within themselves.
        ValueError: If it is damaged, or costs more than its size warrants.
    """
    machine = _StackMachine({**_PLAIN, **globals_}, storage)
    try:
        machine.run(stream)
        value = machine.stack.pop()
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, KeyError, MemoryError, ...
        if machine.foreign:
            raise ForeignGlobalsError(list(machine.foreign)) from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"damaged pickle ({type(error).__name__}: {error})") from error
    if machine.foreign:
        raise ForeignGlobalsError(list(machine.foreign))
    _measure(value, {}, depth=0)
    return value


class _StackMachine:
    """The stack machine that pickles are programs of."""

    def __init__(self, known: Mapping[str, object], storage: Callable[[object], object] | None) -> None:
        self.known, self.storage = known, storage
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: dict[object, object] = {}
        self.foreign: dict[str, None] = {}
        self.steps = 0
        self.copied = 0

    def run(self, stream: IO[bytes]) -> None:
        start = stream.tell()
        for opcode, argument, position in pickletools.genops(stream):
            self.steps += 1
            if self.steps > _MAX_STEPS or self.copied > _MAX_STEPS + 4 * ((position or 0) - start):
                raise ValueError("the pickle takes too many steps for plain data")
            if opcode.name in _LITERALS:
                if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
                    raise ValueError(f"holds a whole number of {argument.bit_length()} bits")
                self.push(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise ValueError(f"the opcode {opcode.name} is not part of plain data")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[object]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def remember(self, place: object) -> None:
        place = len(self.memo) if place is None else place
        self.memo[place] = top = self.stack[-1]
        if isinstance(top, _Unbuilt):
            top.memorized.append(place)

    def push_global(self, name: str) -> None:
        # Spaces part the two in the older opcodes; then the names of Python 2 and numpy 1.
        name = name.replace(" ", ".").replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
        if name not in self.known:
            self.foreign[name] = None
        self.push(self.known.get(name, _FOREIGN))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(f"{module}.{name}")

    def reduce(self) -> None:
        function, arguments = self.pop_many(2)
        self.call(function, arguments)

    def call_marked(self) -> None:
        function, *arguments = self.since_mark()
        self.call(function, tuple(arguments))

    def instantiate(self, name: object) -> None:
        arguments = tuple(self.since_mark())
        self.push_global(str(name))
        self.call(self.stack.pop(), arguments)

    def call_with_keywords(self) -> None:
        function, arguments, keywords = self.pop_many(3)
        self.call(function, arguments if keywords == {} else None)

    def call(self, function: object, arguments: object) -> None:
        if self.foreign:  # only the other names are of interest now
            self.push(_FOREIGN)
            return
        if not isinstance(function, Maker) or not isinstance(arguments, tuple):
            raise ValueError("the pickle calls what is no function")
        for argument in arguments:
            if isinstance(argument, (str, bytes, bytearray)):
                self.copied += len(argument)
            elif isinstance(argument, (list, tuple, dict, set, frozenset)):
                self.steps += len(argument)
        self.push(function.make(*arguments))

    def build(self) -> None:
        state, top = self.stack.pop(), self.stack[-1]
        if self.foreign:
            return
        if isinstance(top, OrderedDict):
            vars(top).update(_versions(state))
            return
        if not isinstance(top, _Unbuilt):
            raise ValueError(f"the pickle sets attributes of {type(top).__name__}")
        if isinstance(state, tuple):
            self.copied += sum(len(part) for part in state if isinstance(part, (str, bytes)))
        self.stack[-1] = value = top.build(state)
        for place in top.memorized:
            self.memo[place] = value

    def extend(self, items: Iterable[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif target is not _FOREIGN:
            raise ValueError(f"the pickle appends to {type(target).__name__}")

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif target is not _FOREIGN:
            raise ValueError(f"the pickle sets items of {type(target).__name__}")

    def push_dict(self) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)

    def add_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif target is not _FOREIGN:
            raise ValueError(f"the pickle adds to {type(target).__name__}")

    def persistent(self, identifier: object) -> None:
        if self.storage is None:
            raise ValueError("the pickle refers to data outside of it")
        self.push(_FOREIGN if self.foreign else self.storage(identifier))

    def pop_many(self, count: int) -> list[object]:
        items = self.stack[-count:]
        if len(items) < count:
            raise ValueError("damaged pickle (its stack is empty)")
        del self.stack[-count:]
        return items


def _key(value: object) -> object:
    """Keys are scalars: hashing nested tuples, or long numbers that collide, could take for ever."""
    scalar = value is None or isinstance(value, (str, bytes, float, np.generic)) or value is _FOREIGN
    if scalar or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    if isinstance(value, tuple) and len(value) <= 8:
        return tuple(
            part if not isinstance(part, tuple) else _refuse("nested tuples as keys") for part in map(_key, value)
        )
    return _refuse(f"{type(value).__name__} as a key")


def _refuse(what: str) -> NoReturn:
    raise NotPlainError(f"holds {what}; only plain data is expected")


def _measure(value: object, known: dict[int, tuple[int, int]], *, depth: int) -> tuple[int, int]:
    """Height and number of items of a value written out in full, which references could make huge; refuses what is none."""
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        if isinstance(value, (Maker, _Unbuilt)):
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
    if height + depth > _MAX_DEPTH or items > 2 * _MAX_STEPS:
        _refuse("containers that refer to each other without measure")
    return height, items


def _dtype(code: object, *_: object) -> _Unbuilt:
    text = code.decode("latin1") if isinstance(code, bytes) else code

    def build(state: object) -> object:
        if not isinstance(text, str) or text not in _TYPES:
            return text  # the array will say so, after the names of all that it would have run
        big = isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">")
        return np.dtype(text).newbyteorder(">" if big else "<")

    return _Unbuilt(build)


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


def _versions(state: object) -> dict[str, object]:
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
    return OrderedDict((_key(key), value) for key, value in pairs)


def _bytes(text: object = "", encoding: object = "latin1") -> bytes:
    """Python 3 writes bytes as text for old protocols, always as latin1."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        _refuse("bytes in an unknown encoding")
    return text.encode("latin1")


def _set(items: object = ()) -> set[object]:
    return set(map(_key, items)) if isinstance(items, (list, tuple)) else _refuse("a set of no list")


_PLAIN: Mapping[str, object] = {
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
    "numpy._core.multiarray._reconstruct": Maker(lambda *_: _Unbuilt(_array_of_state)),
    "numpy._core.multiarray.scalar": Maker(lambda dtype, raw: _array((), dtype, raw, fortran=False)[()]),
    "numpy._core.numeric._frombuffer": Maker(
        lambda raw, dtype, shape, order="C": _array(shape, dtype, raw, fortran=order == "F")
    ),
}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_Step = Callable[[_StackMachine, object], object]
_STEPS: Mapping[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "EMPTY_SET": lambda m, a: m.push(set()),
    "MARK": lambda m, a: m.mark(),
    "POP": lambda m, a: m.stack.pop() if m.stack else m.since_mark(),
    "POP_MARK": lambda m, a: m.since_mark(),
    "DUP": lambda m, a: m.push(m.stack[-1]),
    "TUPLE": lambda m, a: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, a: m.push(tuple(m.pop_many(1))),
    "TUPLE2": lambda m, a: m.push(tuple(m.pop_many(2))),
    "TUPLE3": lambda m, a: m.push(tuple(m.pop_many(3))),
    "LIST": lambda m, a: m.push(m.since_mark()),
    "FROZENSET": lambda m, a: m.push(frozenset(map(_key, m.since_mark()))),
    "APPEND": lambda m, a: m.extend(m.pop_many(1)),
    "APPENDS": lambda m, a: m.extend(m.since_mark()),
    "SETITEM": lambda m, a: m.set_items(m.pop_many(2)),
    "SETITEMS": lambda m, a: m.set_items(m.since_mark()),
    "ADDITEMS": lambda m, a: m.add_items(m.since_mark()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.push(m.memo[a])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda m, a: m.remember(a)),
    "DICT": lambda m, a: m.push_dict(),
    "GLOBAL": lambda m, a: m.push_global(str(a)),
    "STACK_GLOBAL": lambda m, a: m.stack_global(),
    "REDUCE": lambda m, a: m.reduce(),
    "NEWOBJ": lambda m, a: m.reduce(),
    "NEWOBJ_EX": lambda m, a: m.call_with_keywords(),
    "OBJ": lambda m, a: m.call_marked(),
    "INST": lambda m, a: m.instantiate(a),
    "BUILD": lambda m, a: m.build(),
    "PERSID": lambda m, a: m.persistent(a),
    "BINPERSID": lambda m, a: m.persistent(m.stack.pop()),
}
