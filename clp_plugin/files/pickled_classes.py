"""Classes of pickled networks: found in the user's own file, and written back under the names that they had."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator
from operator import attrgetter
from types import ModuleType
from typing import Any


class PickledClasses:
    """Looks up in ``home`` what a pickle names and cannot be imported, such as ``__main__.Net`` of a training script.

    Attributes:
        home: The module of the file that holds the classes; None looks nowhere else.
        found: The classes that were found there, by the module and name that the pickle gives them.
    """

    def __init__(self, home: ModuleType | None = None) -> None:
        self.home = home
        self.found: dict[tuple[str, str], Any] = {}

    def pickle_module(self) -> ModuleType:
        """The module that ``torch.load`` takes as ``pickle_module``."""
        classes = self

        class Unpickler(pickle.Unpickler):
            def find_class(self, module_name: str, global_name: str) -> Any:
                try:
                    return super().find_class(module_name, global_name)
                except (ImportError, AttributeError):
                    return classes._find(module_name, global_name)

        module: Any = ModuleType("pickle")
        module.Unpickler, module.load, module.loads = Unpickler, pickle.load, pickle.loads
        return module  # type: ignore[no-any-return]

    def _find(self, module: str, name: str) -> Any:
        try:
            if self.home is None:
                raise AttributeError(name)
            found = attrgetter(name)(self.home)
        except AttributeError as error:
            where = (
                "cannot be imported"
                if self.home is None
                else f"can neither be imported nor found in {self.home.__file__}"
            )
            raise AttributeError(f"its class {module}.{name} {where}") from error
        self.found[module, name] = found
        return found

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Inside the block, what was found goes by the names in the pickle, so that it is written under them again."""
        before = {part: sys.modules.get(part) for module, _ in self.found for part in _with_parents(module)}
        added: list[tuple[Any, str]] = []
        homes = [(found, found.__module__) for found in self.found.values()]
        try:
            for (module, name), found in self.found.items():
                for part in _with_parents(module):
                    sys.modules.setdefault(part, ModuleType(part))
                found.__module__ = module
                if not hasattr(sys.modules[module], name):
                    setattr(sys.modules[module], name, found)
                    added.append((sys.modules[module], name))
            yield
        finally:
            for found, home in homes:
                found.__module__ = home
            for owner, name in added:
                delattr(owner, name)
            for part, old in before.items():
                if old is None:
                    sys.modules.pop(part, None)


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
