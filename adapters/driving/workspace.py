"""A folder that looks like a checkout to a script, and in which it may write.

Scripts never run in the checkout itself: whatever they do, crash or are killed, the record stays as it was, and a
result reaches it in one step.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from clp_plugin.files.atomic import staged_folder
from clp_plugin.files.locks import NEW, beside, claimed, clear_dead
from clp_plugin.files.places import refusals_told


@contextlib.contextmanager
def workspace(checkout: Path | None, *, own: Collection[str], avoid: str | None = None) -> Iterator[Path]:
    """Make a temporary folder with links to everything of a checkout but the folders that a script may write into.

    Args:
        checkout: The toolbox's root; None for a toolbox that is an installed package, whose workspace is empty.
        own: The names of the folders that are new and empty in the workspace.
        avoid: A word that the workspace's path must not hold, because the toolbox's scripts cut paths at it; None for none.

    Yields:
        The workspace, which is gone when the block ends.
    """
    beside_it = () if checkout is None else (checkout.parent,)
    base = _harmless(avoid, tempfile.gettempdir(), "/tmp", *beside_it, Path.home())
    clear_dead(base, names=())
    run = base / f"clp-plugin-{secrets.token_hex(8)}"
    temporary = beside(run, NEW)
    with claimed(run):  # so that the next run can tell whether this one is alive
        # Scripts put `..` on their search path, so nothing may lie beside the workspace.
        place = temporary / "toolbox"
        with refusals_told(temporary):
            temporary.mkdir(mode=0o700)
            place.mkdir()
            for item in () if checkout is None else checkout.iterdir():
                if item.name not in own and item.name != ".git":
                    (place / item.name).symlink_to(item.absolute(), target_is_directory=item.is_dir())
            for name in own:
                (place / name).mkdir()
        yield place


def _harmless(avoid: str | None, *places: str | Path) -> Path:
    """The first folder for temporary files whose path does not hold the word to avoid; the usual one if all do."""
    usable = [place for place in map(Path, places) if place.is_dir() and os.access(place, os.W_OK)]
    return next(
        (place for place in usable if avoid is None or avoid not in str(place.resolve())), Path(tempfile.gettempdir())
    )


def move_in(produced: Path, destination: Path) -> None:
    """Move a finished folder to its place in one step, replacing what is there.

    Raises:
        ConfigError: If the place cannot be written.
    """
    with staged_folder(destination) as place:
        for item in produced.iterdir():
            shutil.move(item, place / item.name)
