"""Files and folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from clp_plugin.errors import ConfigError


def write_atomically(path: Path, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` fill a temporary file beside ``path``, then move it there in one step.

    A reader sees the old file or the new one, never half of it. Missing folders are made.

    Args:
        path: The file to write.
        writer: Called with the temporary path, which has the suffix of ``path``.

    Raises:
        ConfigError: If the folder cannot be written or ``path`` is a folder.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual = temporary.stat().st_mode  # safetensors would leave files that only their owner can read
        writer(temporary)
        temporary.chmod(usual)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 in one step."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def write_json_atomically(path: Path, obj: object) -> None:
    """Write ``obj`` as JSON in one step; NaN and infinities become null, as JSON has no word for them."""
    write_text_atomically(path, json.dumps(finite(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(obj: object) -> object:
    """The same plain data with None in place of NaN and infinities, and lists in place of tuples."""
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    if isinstance(obj, Mapping):
        return {key: finite(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [finite(value) for value in obj]
    return obj


@contextlib.contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """A new folder beside ``destination`` to be filled; when the block ends well it takes that place in one step.

    A folder that stands there already is set aside first and deleted last; if the block fails, nothing has changed.

    Args:
        destination: The folder to make or to replace. Missing parents are made.

    Raises:
        ConfigError: If the place cannot be written.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _finish_interrupted(destination)
        staged = Path(tempfile.mkdtemp(prefix=f".{destination.name}.new-", dir=destination.parent))
        staged.chmod(0o777 & ~_umask())  # mkdtemp's folders are their owner's only
    except OSError as error:
        raise _cannot_write(destination, error) from error
    try:
        yield staged
        _swap(staged, destination)
    except OSError as error:
        raise _cannot_write(destination, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _swap(staged: Path, destination: Path) -> None:
    aside = destination.with_name(f".{destination.name}.old")
    if destination.exists():
        destination.rename(aside)
    staged.rename(destination)
    shutil.rmtree(aside, ignore_errors=True)


def _finish_interrupted(destination: Path) -> None:
    """What a killed run left: the old folder set aside, when the new one had not yet taken its place, goes back."""
    aside = destination.with_name(f".{destination.name}.old")
    if aside.is_dir() and not destination.exists():
        aside.rename(destination)
    shutil.rmtree(aside, ignore_errors=True)
    for left in destination.parent.glob(f".{glob.escape(destination.name)}.new-*"):
        shutil.rmtree(left, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"cannot write {path}: {reason}; choose another place or make it writable")
