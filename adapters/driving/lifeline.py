"""A script ends with the process that started it, also when that one is killed and can no longer stop anything.

The parent holds one end of a pipe and never writes; the child reads the other. The read ends when the parent does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

VARIABLE = "CLP_PLUGIN_LIFELINE"


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """Open the pipe, in the parent; the child is to inherit this end and find its number in :data:`VARIABLE`."""
    passed, kept = os.pipe()
    try:
        yield passed
    finally:
        os.close(passed)
        os.close(kept)


def end_with_parent() -> None:
    """Have the child's process group killed when the parent is gone. A child started by hand has no parent to watch."""
    if VARIABLE in os.environ:
        threading.Thread(target=_watch, args=(int(os.environ[VARIABLE]),), daemon=True).start()


def _watch(passed: int) -> None:
    os.read(passed, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
