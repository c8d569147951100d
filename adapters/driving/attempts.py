"""The child process in which parts of a toolbox are tried.

``python -m clp_plugin.adapters.driving.attempts MODULE:FUNCTION NAME...`` calls the function with each name and prints a JSON
object ``{name: error or null}`` as the last line of standard output.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence


def report(names: Sequence[str], attempt: Callable[[str], object]) -> None:
    """Try each part and print what came of it."""
    found = {name: _error(attempt, name) for name in names}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def _error(attempt: Callable[[str], object], name: str) -> str | None:
    before = list(sys.path)
    try:
        attempt(name)
    except BaseException as error:  # a script may even exit
        return f"{type(error).__name__}: {error}"
    finally:
        sys.path[:] = before
    return None


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    report(sys.argv[2:], getattr(importlib.import_module(module), function))
