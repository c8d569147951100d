"""A folder that looks like the checkout to a script, and in which it may write.

Scripts never run in the checkout itself: whatever they do, crash or are killed, the record stays as it was, and a
result reaches it in one step. It also gives them the surroundings that they take for granted: the folder names on
which they re-root paths, the record under the name that its files carry, the clean data in ``data/``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.files.checkpoints import staged_folder

from ..backdoorbench.attack_result import FILE, AttackResult

_OWN = frozenset({"data", "record", ".git"})


@contextlib.contextmanager
def workspace(checkout: Path) -> Iterator[Path]:
    """A temporary folder with links to everything of the checkout but ``data`` and ``record``, which are new and empty."""
    base = _harmless(tempfile.gettempdir(), "/tmp", checkout.parent, Path.home())
    with tempfile.TemporaryDirectory(prefix="clp-plugin-", dir=base, ignore_cleanup_errors=True) as temporary:
        # Scripts put `..` on their search path, so nothing may lie beside the workspace.
        place = Path(temporary) / "toolbox"
        place.mkdir()
        for item in checkout.iterdir():
            if item.name not in _OWN:
                (place / item.name).symlink_to(item.absolute(), target_is_directory=item.is_dir())
        (place / "data").mkdir()
        (place / "record").mkdir()
        yield place


def add_data(place: Path, stored: str, root: Path) -> None:
    """Put the data set in ``root`` where a script will look for it.

    Args:
        place: The workspace.
        stored: The data set's path as the record has it; the toolbox takes what follows the first ``data`` in it.
        root: Where it really lies.
    """
    start = stored.find("data")
    target = place / (stored[start:] if start >= 0 else f"data/{Path(stored).name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(root.absolute(), target_is_directory=True)


def add_record(place: Path, result: AttackResult) -> str:
    """Put a record into the workspace, with an empty ``defense`` folder.

    Returns:
        Its name there: the one that its files carry, as the toolbox opens images by their stored paths.
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


def _harmless(*places: str | Path) -> Path | None:
    """The first folder for temporary files whose path has no ``record`` in it: the toolbox would cut the path there."""
    usable = [place for place in map(Path, places) if place.is_dir() and os.access(place, os.W_OK)]
    return next((place for place in usable if "record" not in str(place.resolve())), None)


def move_in(produced: Path, destination: Path) -> None:
    """Move a finished folder to its place in one step, replacing what is there.

    Raises:
        ConfigError: If the place cannot be written.
    """
    with staged_folder(destination) as place:
        for item in produced.iterdir():
            shutil.move(item, place / item.name)


def _copy(source: Path, target: Path) -> None:
    """A link, even a hard one, would let a script write into the record."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ConfigError(
            f"cannot copy {source} to the temporary folder {target.parent}: {error.strerror}; "
            "make room there, or set TMPDIR to a place with room"
        ) from error
