"""One run at a time in one place, and what dead runs left there cleared away.

All that is unfinished lies beside its place under a hidden name: ``.NAME.clp-new`` is being written, ``.NAME.clp-old``
was set aside to make way, and ``.NAME.clp-lock`` is locked by the run that writes ``NAME``. The lock goes with the process,
however it dies, on shared disks too; so what nobody has locked belongs to nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.files import places

NEW, OLD, _LOCK = ".clp-new", ".clp-old", ".clp-lock"
_UNFINISHED = re.compile(rf"\.(.+)(?:{'|'.join(map(re.escape, (NEW, OLD, _LOCK)))})", re.DOTALL)
_WHOLE = "folder"  # stands for all that is in the folder
_LOCK_TIMEOUT = 1.0  # seconds: a run that only looks for leftovers holds a lock for a moment
_log = logging.getLogger(__name__)


def beside(place: Path, mark: str) -> Path:
    """The hidden sibling of a place: ``NEW`` or ``OLD``."""
    return place.with_name(f".{place.name}{mark}")


@contextlib.contextmanager
def claimed(place: Path, *, wait: bool = True) -> Iterator[None]:
    """Inside the block no other run writes ``place``, and nothing that dead runs left of it or in it is there.

    A process may claim a place again that it has claimed.

    Args:
        place: A file or a folder, there or not. Missing parents are made, and go again if nothing is put there.
        wait: Wait for another run that has the place, and say so; otherwise give way to it.

    Raises:
        ConfigError: If another run has the place and ``wait`` is False, or the place cannot be written.
    """
    place = Path(os.path.realpath(place))
    with _queued(place, told=place, wait=wait):
        yield


@contextlib.contextmanager
def claimed_inside(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """:func:`claimed` for a folder that is filled and never replaced: the folder above it need not be writable."""
    folder = Path(os.path.realpath(folder))
    with _queued(folder / _WHOLE, told=folder, wait=wait):
        clear_dead(folder)
        yield


@contextlib.contextmanager
def _queued(place: Path, *, told: Path, wait: bool) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        with places.refusals_told(told):
            for parent in [parent for parent in place.parents if not parent.exists()][::-1]:
                parent.mkdir(exist_ok=True)
                held.callback(_remove_empty, parent)
            try:
                held.enter_context(_hold(place, _LOCK_TIMEOUT))
            except TimeoutError:
                if not wait:
                    raise ConfigError(
                        f"{told}: another run is writing there; wait until it has ended, or choose another place"
                    ) from None
                _log.warning("waiting for another run that writes %s", told)
                held.enter_context(_hold(place, -1))
        yield


def clear_dead(folder: Path, names: Iterable[str] | None = None) -> None:
    """Delete what dead runs left in a folder and below; a folder that one had set aside goes back to its place.

    Whatever cannot be deleted or moved stays where it is.

    Args:
        folder: The folder to clear; it need not exist.
        names: Look into these of its folders only, such as the results of a record with many images.
    """
    for root, folders, files in os.walk(folder):
        found = {match[1] for name in (*folders, *files) if (match := _UNFINISHED.fullmatch(name))}
        only = names if names is not None and Path(root) == folder else folders
        folders[:] = [name for name in folders if name in only and not name.startswith(".")]
        for name in found:
            with contextlib.suppress(OSError), _hold(Path(root, name), 0):  # a living run has it, or it is read-only
                pass


def finished(folder: Path, suffix: str) -> Iterator[Path]:
    """The files of that suffix in a folder and below, but for all that is hidden."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if name.endswith(suffix) and not name.startswith("."))


@contextlib.contextmanager
def _hold(place: Path, timeout: float) -> Iterator[None]:
    from filelock import FileLock

    lock_file = beside(place, _LOCK)
    lock = FileLock(lock_file, is_singleton=True)  # one object a path, so that a nested claim counts up
    places.step("lock", lock_file)
    with lock.acquire(timeout=timeout):
        outermost = lock.lock_counter == 1
        try:
            if outermost:
                _clear(place)
                clear_dead(place)
            yield
        finally:
            if outermost:
                _clear(place)
                places.step("unlock", lock_file)
                lock_file.unlink(missing_ok=True)  # while it is held: whoever waits for this file then makes a new one


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something is in it by now
        folder.rmdir()


def _clear(place: Path) -> None:
    """Delete what an interrupted run left; the old, where the new had not yet taken its place, goes back."""
    old, new = beside(place, OLD), beside(place, NEW)
    if old.exists() and not place.exists():
        places.step("put back", place)
        old.rename(place)
    for left in (old, new):
        if left.is_dir():
            places.step("clear", left)
            shutil.rmtree(left, ignore_errors=True)
        elif left.exists():
            places.step("clear", left)
            left.unlink(missing_ok=True)
