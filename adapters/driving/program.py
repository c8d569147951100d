"""A user's script of a toolbox in this process, as ``python SCRIPT ARGUMENT...`` would run it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def run_as_program(
    script: Path, arguments: Sequence[str], *, prepare: Callable[[], object], beside: Sequence[Path] = ()
) -> None:
    """Run a script to its end.

    Args:
        script: The script; what lies beside it can be imported, as it expects.
        arguments: The script's arguments.
        prepare: Called when the script's arguments and places are set, for toolboxes that look at them when they are imported.
        beside: Other folders whose modules it imports by bare names.
    """
    sys.argv = [str(script), *arguments]
    sys.path[:0] = [str(place) for place in (script.absolute().parent, *beside)]
    prepare()
    runpy.run_path(str(script), run_name="__main__")
