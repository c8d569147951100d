"""Stops work at each of its write steps, one after the other: by Ctrl-C, or by SIGKILL in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clp_plugin.files import places

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


@contextlib.contextmanager
def steps(at: int | None = None, stop: Callable[[], object] = lambda: None) -> Iterator[list[str]]:
    """The write steps taken inside the block; before step number ``at``, counted from 0, ``stop`` is called."""
    taken: list[str] = []

    def step(what: str, path: Path) -> None:
        taken.append(f"{what} {path.name}")
        if len(taken) - 1 == at:
            stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "step", step)
        yield taken


def ctrl_c(work: Callable[[], object], at: int) -> str:
    """The step, number ``at``, before which ``work`` was stopped; empty if it has fewer steps and ended well."""

    def stop() -> None:
        raise KeyboardInterrupt

    with steps(at, stop) as taken:
        try:
            work()
        except KeyboardInterrupt:
            return taken[at]
    return ""


def kill(work: Callable[[], object], at: int) -> bool:
    """Whether SIGKILL ended ``work``, done in a child process, before its step number ``at``: nothing is tidied up."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with steps(at, die):
        code = wait(fork(work))
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def fork(work: Callable[[], object]) -> int:
    """The id of a child process that does ``work`` and ends with 0, or with 1 if it raises.

    It is forked from a new thread, which becomes the child's only one: the child of a thread that has computed with
    others by OpenMP waits for them forever.
    """
    children: list[int] = []
    thread = threading.Thread(target=lambda: children.append(_fork(work)))
    thread.start()
    thread.join()
    return children[0]


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Exit code of a child process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, bytes]:
    """Path below the folder to bytes, hidden files and empty folders included."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }
