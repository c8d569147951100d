"""One of the toolbox's scripts in a process of its own: live output, log, time limit, and a clear end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clp_plugin.errors import ToolboxError

from .lifeline import VARIABLE, lifeline

_EXCEPTION = re.compile(r"^(?:[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*|[\w./-]+: error: .*)$")
_LAST_LINES = 200  # last lines among which the reason of a crash is looked for
_SECONDS_TO_STOP = 5.0  # seconds between asking a process to stop and stopping it


@dataclass(frozen=True)
class Script:
    """A script, and how it is to run.

    Attributes:
        path: The script's path below the workspace, such as ``defense/ft.py``.
        arguments: The arguments of its command line.
        launcher: The module that runs it in the child process, with the bridges that it needs.
        trust: Let it load pickles that run code.
        fast_cpu: bfloat16 where it asks for mixed precision on a machine without a GPU.
    """

    path: str
    arguments: Sequence[str]
    launcher: str
    trust: bool = False
    fast_cpu: bool = False

    def command(self) -> list[str]:
        """The child's command line."""
        flags = [flag for flag, given in (("--trust", self.trust), ("--fast-cpu", self.fast_cpu)) if given]
        return [sys.executable, "-m", self.launcher, *flags, "run", self.path, *self.arguments]


def run_script(
    script: Script, place: Path, log: Path, *, report: Callable[[str], object], time_limit: float | None = None
) -> float:
    """Run a script to its end.

    Args:
        script: The script, and how it is to run.
        place: The workspace, which becomes the current folder.
        log: Receives all that it prints; missing folders are made.
        report: Called with each line as it comes.
        time_limit: Seconds, or None.

    Returns:
        Wall-clock seconds.

    Raises:
        ToolboxError: If it fails or takes too long; names the script, the reason that it gave, and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with (
        log.open("w", encoding="utf-8") as file,
        _child(script.command(), place) as child,
        _limit(child, time_limit) as over,
    ):
        for line in child.stdout or ():
            file.write(line)
            file.flush()
            last.append(line.rstrip())
            report(last[-1])
        status = child.wait()
    seconds = time.perf_counter() - start
    if over.is_set():
        raise ToolboxError(
            f"{script.path} was stopped after the time limit of {time_limit:g} s; its output is in {log}"
        )
    if status:
        said = f"exit status {status}" if status > 0 else f"killed by signal {signal.Signals(-status).name}"
        raise ToolboxError(f"{script.path} failed ({said}): {_reason(last)}; its output is in {log}")
    return seconds


def environment() -> dict[str, str]:
    """The child's variables: figures need no screen, text is UTF-8, output comes at once, no caches in the checkout."""
    own = {"MPLBACKEND": "Agg", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **own}


@contextlib.contextmanager
def _child(command: list[str], place: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a child in a process group of its own, which is stopped with its data loaders, by us or by the lifeline."""
    with lifeline() as passed:
        child = subprocess.Popen(
            command, cwd=place, env={**environment(), VARIABLE: str(passed)}, pass_fds=[passed], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", bufsize=1,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield child
        finally:
            _stop(child)
            if child.stdout is not None:
                child.stdout.close()


@contextlib.contextmanager
def _limit(child: subprocess.Popen[str], seconds: float | None) -> Iterator[threading.Event]:
    """Stops the child when its time is over; the event says that it did."""
    over = threading.Event()

    def stop() -> None:
        over.set()
        _stop(child)

    timer = threading.Timer(seconds, stop) if seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield over
    finally:
        if timer is not None:
            timer.cancel()


def _stop(child: subprocess.Popen[str]) -> None:
    """The group and not only the child: what it started may outlive it, and would hold its output open."""
    for number, patience in ((signal.SIGTERM, _SECONDS_TO_STOP), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: a group of ended processes is no one's
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)


def _reason(lines: Sequence[str]) -> str:
    """The last line that names an exception, or else the last line with anything in it."""
    told = [line for line in lines if line.strip()]
    exceptions = [line for line in told if _EXCEPTION.match(line)]
    return (exceptions or told or ["it printed nothing"])[-1][:300]
