"""Import a Python file, or an attribute by ``module:attr``, without touching sys.path."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType


def import_file(path: Path) -> ModuleType:
    """Run a Python file as a module under a private name that depends on its path only.

    Raises:
        ImportError: If there is no such file or Python cannot import it.
        Exception: Whatever the file itself raises.
    """
    if not path.is_file():
        raise ImportError(f"there is no file {path.absolute()}")
    private = "_clp_plugin_file_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses in the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[private]
        raise
    return module


def import_object(reference: str) -> object:
    """Import the object that ``"module:attr"`` or ``"path/to/file.py:attr"`` names; ``attr`` may have dots.

    Raises:
        ImportError: If the module or file is not there.
        AttributeError: If it lacks the attribute.
        Exception: Whatever the module raises.
    """
    source, _, attribute = reference.rpartition(":")
    module = import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    found: object = attrgetter(attribute)(module)
    return found
