"""Places to write to: links are followed, and nothing is replaced that is not this package's own to replace."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from clp_plugin.errors import ConfigError

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


def step(what: str, path: Path) -> None:
    """Called before every change on disk; does nothing. Tests put an interruption in its place.

    Args:
        what: The change, such as ``"replace"``.
        path: The file or folder that changes.
    """


@contextlib.contextmanager
def inputs_kept(*inputs: Path) -> Iterator[None]:
    """Inside the block no input is replaced: no such file under any of its names, and no folder that holds one.

    Args:
        inputs: Files; a folder stands for the files directly in it.
    """
    files = [file for path in inputs for file in _files(path)]
    token = _inputs.set((*_inputs.get(), *files))
    try:
        yield
    finally:
        _inputs.reset(token)


def _files(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # whoever opens it says what is wrong
        return list(path.iterdir()) if path.is_dir() else [path]
    return []


def file_to_write(path: Path) -> Path:
    """The place that ``path`` leads to, links followed, where a file may be written.

    Raises:
        ConfigError: If something else than a file stands there, or an input of this run, or the path cannot be used.
    """
    place = _place(path, stat.S_ISREG, "a file")
    for kept in _inputs.get():
        with contextlib.suppress(OSError):
            if kept.samefile(place):
                raise ConfigError(f"{path} is the same file as {kept}, an input of this run; choose another name")
    return place


def folder_to_fill(path: Path) -> Path:
    """The place that ``path`` leads to, links followed, where a folder stands or may be made to write files into.

    Raises:
        ConfigError: If something else than a folder stands there, or the path cannot be used.
    """
    return _place(path, stat.S_ISDIR, "a folder")


def folder_to_replace(path: Path) -> Path:
    """Like :func:`folder_to_fill`, for a folder that is put there whole.

    Raises:
        ConfigError: If it cannot be used so, holds an input of this run, or is the current folder or a mount point.
    """
    place = folder_to_fill(path)
    if os.path.ismount(place) or Path(os.path.realpath(os.curdir)).is_relative_to(place):
        raise ConfigError(f"{path} is in use as a whole; expected the name of a folder in it")
    for kept in _inputs.get():
        if kept.resolve().is_relative_to(place):
            raise ConfigError(f"{path} holds {kept}, an input of this run; choose another folder")
    return place


def _place(path: Path, fits: Callable[[int], bool], expected: str) -> Path:
    try:
        place = Path(os.path.realpath(path))
        mode = place.stat().st_mode
    except FileNotFoundError:
        return place
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise cannot_write(path, error) from error
    if not fits(mode):
        found = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise ConfigError(f"cannot write {path}: it is {found}, expected {expected}; choose another place")
    return place


@contextlib.contextmanager
def refusals_told(path: Path) -> Iterator[None]:
    """Tell what the disk refuses inside the block as a mistake of the user, in terms of ``path``.

    Raises:
        ConfigError: If the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError | ValueError) -> ConfigError:
    """The error for a place that cannot be written, with what to do about it."""
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if number == errno.ENAMETOOLONG:
        remedy = "choose a shorter name"
    elif number in _DISK_FULL:
        remedy = "make room there or choose another place"
    else:
        remedy = "choose another place or make it writable"
    return ConfigError(f"cannot write {path}: {reason}; {remedy}")
