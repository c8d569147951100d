"""Files of this plugin in a toolbox's checkout: written, known again by their first line, taken out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import write_text_atomically
from clp_plugin.files.reading import read_text

_WRITTEN_BY = "# Written by `bench toolbox register"


def first_line(toolbox: str) -> str:
    """The line with which each of our files in a toolbox's checkout begins."""
    return f"{_WRITTEN_BY} {toolbox}`; `--remove` takes it out."


def register_files(files: Mapping[Path, str], *, remove: bool = False) -> list[Path]:
    """Write our files into a checkout, or delete them; nothing else is touched.

    A file that the user edited keeps its first line, so it counts as ours and is rewritten or deleted.

    Args:
        files: Path to content, which begins with :func:`first_line`.
        remove: Delete the files instead of writing them.

    Returns:
        The files written or deleted.

    Raises:
        ConfigError: If a file of that name is not ours, or cannot be written.
    """
    foreign = [path for path in files if path.exists() and not is_ours(path)]
    if foreign:
        raise ConfigError(f"{foreign[0]} was not written by this plugin and stays as it is; move it away first")
    if remove:
        return _remove([path for path in files if path.exists()])
    for path, content in files.items():
        write_text_atomically(path, content)
    return list(files)


def is_ours(path: Path) -> bool:
    """Whether a file was written by ``bench toolbox register``."""
    try:
        return read_text(path, raises=ConfigError).startswith(_WRITTEN_BY)
    except ConfigError:
        return False


def _remove(ours: list[Path]) -> list[Path]:
    try:
        for path in ours:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot delete {error.filename}: {error.strerror}; check its permissions") from error
    return ours
