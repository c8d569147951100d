"""BackdoorBox's package ``core`` where not all that it imports is installed.

The package imports every attack and defense at once, and one of them always lacks something: foreign source trees, packages
of years ago. Here each is imported when it is asked for, so that one that cannot be imported spoils no other.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "core"
PARTS = ("attacks", "defenses")


def lend_core(root: Path, own: Mapping[str, Any]) -> None:
    """Make ``import core`` give the package of a checkout, in this process.

    Args:
        root: The checkout.
        own: Names that ``core`` and ``core.defenses`` have besides their own.
    """
    folder = root / PACKAGE
    parts = {part: _package(f"{PACKAGE}.{part}", folder / part, _exported) for part in PARTS}
    core = _package(PACKAGE, folder, _anything)
    for name, value in own.items():
        setattr(core, name, value)
        setattr(parts["defenses"], name, value)
    for part, package in parts.items():
        setattr(core, part, package)


def try_module(name: str) -> None:
    """Import a module of ``core`` of the checkout in the current folder, such as ``attacks.BadNets``."""
    if PACKAGE not in sys.modules:
        lend_core(Path.cwd(), {})
    importlib.import_module(f"{PACKAGE}.{name}")


class _Package(ModuleType):
    """A package whose names are imported when they are asked for."""

    find: Callable[[str, Path, str], Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(self).find(self.__name__, Path(self.__path__[0]), name)
        setattr(self, name, value)
        return value


def _package(name: str, folder: Path, find: Callable[[str, Path, str], Any]) -> ModuleType:
    kind = type("_Package", (_Package,), {"find": staticmethod(find)})
    package: ModuleType = kind(name)
    package.__path__ = [str(folder)]
    package.__file__ = str(folder / "__init__.py")
    sys.modules[name] = package
    return package


def _exported(package: str, folder: Path, name: str) -> Any:
    """The class that the module of the same name defines, as both packages export it."""
    if not (folder / f"{name}.py").is_file():
        raise AttributeError(f"{package} has no {name}")
    return getattr(importlib.import_module(f"{package}.{name}"), name)


def _anything(package: str, folder: Path, name: str) -> Any:
    """A package or module of ``core``, or what one of its packages exports."""
    if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
        return importlib.import_module(f"{package}.{name}")
    for part in PARTS:
        if (folder / part / f"{name}.py").is_file():
            return getattr(sys.modules[f"{package}.{part}"], name)
    return getattr(importlib.import_module(f"{package}.models"), name)
