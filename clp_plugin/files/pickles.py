"""Look into a pickle without running it: which globals would it import?"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What torch's restricted unpickler rebuilds tensors from; only used to keep them out of messages.
_TORCH_PLAIN = ("torch._utils._rebuild_", "torch._tensor._rebuild_", "torch.serialization._get_layout")
_PLAIN = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.set",
    "builtins.bytearray",
    "builtins.complex",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
}
_NUMPY_HOMES = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1.x, numpy 2.x
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, storage keys; then come raw tensor bytes
_NUMERIC = "?bhilqBHILQefdFD"


def foreign_globals(path: Path) -> list[str]:
    """Globals that the file names and a plain checkpoint does not need, in the order of the file; runs nothing.

    Args:
        path: A file of torch.save (zip or legacy) or a bare pickle.

    Returns:
        Dotted names without repetition; empty when the file is no pickle or is too damaged to parse.
    """
    found: dict[str, None] = {}
    numpy_makers = {f"{home}.{maker}" for home in _NUMPY_HOMES for maker in ("_reconstruct", "scalar")}
    for name in _globals(_pickle_bytes(path)):
        if name not in _PLAIN | numpy_makers and not _is_plain_torch(name):
            found[name] = None
    return list(found)


def _is_plain_torch(name: str) -> bool:
    import torch

    module, _, attribute = name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage") and attribute.endswith("Storage"):
        return True
    return name.startswith(_TORCH_PLAIN) or (
        module == "torch" and isinstance(getattr(torch, attribute, 0), torch.dtype)
    )


def _pickle_bytes(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            return archive.read(names[0]) if names else b""
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError):
        return b""


def _globals(data: bytes) -> Iterator[str]:
    """Names after GLOBAL, INST and STACK_GLOBAL, in every pickle of a legacy file (it holds several in a row)."""
    stream = io.BytesIO(data)
    for _ in range(_LEGACY_PICKLES):
        strings: list[str] = []  # the strings pushed so far: STACK_GLOBAL takes the last two
        memo: dict[int, str] = {}
        try:
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                else:
                    _follow_string(opcode.name, argument, strings, memo)
        except Exception:  # the end, or no pickle from here on
            return


def _follow_string(opcode: str, argument: Any, strings: list[str], memo: dict[int, str]) -> None:
    if "UNICODE" in opcode or "STRING" in opcode:
        strings.append(str(argument))
    elif opcode == "MEMOIZE":
        memo[len(memo)] = strings[-1] if strings else ""
    elif "PUT" in opcode:
        memo[int(argument)] = strings[-1] if strings else ""
    elif "GET" in opcode:
        strings.append(memo.get(int(argument), ""))


@contextmanager
def plain_containers_allowed() -> Iterator[None]:
    """Let torch's restricted unpickler rebuild numeric numpy arrays and scalars; afterwards its list is as before.

    argparse.Namespace and toolbox classes stay out on purpose: whoever needs them must say ``--trust``.
    """
    from torch import serialization

    before = list(serialization.get_safe_globals())
    serialization.add_safe_globals(_numpy_globals())
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _numpy_globals() -> list[Any]:
    import numpy as np

    # __reduce__ leads to the function under whichever name this numpy has for it.
    array_maker, scalar_maker = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in _NUMERIC}
    return [
        np.ndarray,
        np.dtype,
        *dtypes,
        *(_renamed(array_maker, home, "_reconstruct") for home in _NUMPY_HOMES),
        *(_renamed(scalar_maker, home, "scalar") for home in _NUMPY_HOMES),
    ]


def _renamed(function: Any, module: str, name: str) -> Any:
    """``function`` under another dotted name; torch before 2.6 does not take the (function, name) pairs for this."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call
