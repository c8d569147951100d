"""The surroundings that a script of BackdoorBench takes for granted.

These are the folder names on which it re-roots paths, the record under the name that its files carry, and the clean data in
``data/``.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from clp_plugin.errors import ConfigError

from ..driving.workspace import workspace
from .attack_result import FILE, AttackResult


@contextlib.contextmanager
def backdoorbench_workspace(root: Path) -> Iterator[Path]:
    """Make a workspace of the checkout in ``root`` whose folders ``data`` and ``record`` are new and empty."""
    with workspace(root, own=("data", "record"), avoid="record") as place:
        yield place


def add_data(place: Path, stored: str, root: Path) -> None:
    """Put the data set in ``root`` where a script will look for it.

    Args:
        place: The workspace.
        stored: The data set's path as the record has it; the toolbox takes what follows the first ``data`` in it.
        root: The folder that the data set really lies in.
    """
    start = stored.find("data")
    target = place / (stored[start:] if start >= 0 else f"data/{Path(stored).name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(root.absolute(), target_is_directory=True)


def add_record(place: Path, result: AttackResult) -> str:
    """Put a record into the workspace, with an empty ``defense`` folder.

    Returns:
        The record's name there: the one that its files carry, as the toolbox opens images by their stored paths.
    """
    name = result.stored_name
    inside = place / "record" / name
    inside.mkdir(parents=True)
    # The toolbox also follows links, and then takes the target's surroundings for its own.
    _copy(result.folder / FILE, inside / FILE)
    for item in result.folder.iterdir():
        if item.name not in (FILE, "defense"):
            (inside / item.name).symlink_to(item.absolute(), target_is_directory=item.is_dir())
    (inside / "defense").mkdir()
    return name


def _copy(source: Path, target: Path) -> None:
    """A link, even a hard one, would let a script write into the record."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ConfigError(
            f"cannot copy {source} to the temporary folder {target.parent}: {error.strerror}; "
            "make room there, or set TMPDIR to a place with room"
        ) from error
