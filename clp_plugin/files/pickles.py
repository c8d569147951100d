"""Pickles of strangers: an interpreter of their opcodes that calls nothing which a file names.

Containers, numbers, text and numeric numpy arrays are rebuilt, and those by functions of this package: neither Python's nor
numpy's nor torch's own unpickling ever sees the file. What a pickle may cost is bounded by its size.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import IO

from clp_plugin.files.plain_data import FOREIGN, PLAIN, Maker, Unbuilt, key_of, module_versions, require_bounded

_MAX_STEPS = 2_000_000  # opcodes and copied items: about two seconds, half a gigabyte at worst
_MAX_BITS = 128  # of a whole number; random generators have states of this size


class ForeignGlobalsError(ValueError):
    """A pickle asks for globals that plain data does not need; nothing of it was run.

    Attributes:
        names: Dotted names in the order of the file, without repetition.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


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
    machine = _StackMachine({**PLAIN, **globals_}, storage)
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
    require_bounded(value)
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
        if isinstance(top, Unbuilt):
            top.memorized.append(place)

    def push_global(self, name: str) -> None:
        # Spaces part the two in the older opcodes; then the names of Python 2 and numpy 1.
        name = name.replace(" ", ".").replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
        if name not in self.known:
            self.foreign[name] = None
        self.push(self.known.get(name, FOREIGN))

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
            self.push(FOREIGN)
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
            vars(top).update(module_versions(state))
            return
        if not isinstance(top, Unbuilt):
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
        elif target is not FOREIGN:
            raise ValueError(f"the pickle appends to {type(target).__name__}")

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(key_of, items[::2]), items[1::2], strict=True))
        elif target is not FOREIGN:
            raise ValueError(f"the pickle sets items of {type(target).__name__}")

    def push_dict(self) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)

    def add_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(key_of, items))
        elif target is not FOREIGN:
            raise ValueError(f"the pickle adds to {type(target).__name__}")

    def persistent(self, identifier: object) -> None:
        if self.storage is None:
            raise ValueError("the pickle refers to data outside of it")
        self.push(FOREIGN if self.foreign else self.storage(identifier))

    def pop_many(self, count: int) -> list[object]:
        items = self.stack[-count:]
        if len(items) < count:
            raise ValueError("damaged pickle (its stack is empty)")
        del self.stack[-count:]
        return items


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
    "FROZENSET": lambda m, a: m.push(frozenset(map(key_of, m.since_mark()))),
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
