"""Finding out what of a toolbox starts here: each part is imported in a child process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import ScriptState

from .process import environment

_CHILD = "clp_plugin.adapters.driving.attempts"
_MISSING = re.compile(r"No module named '([\w.]+)'")
_PACKAGES = {
    "cv2": "opencv-python-headless", "skimage": "scikit-image", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn",
    "pywt": "PyWavelets", "umap": "umap-learn", "pytorch_grad_cam": "grad-cam",
}  # fmt: skip
# Source trees that a toolbox wants beside it; a package of such a name on an index would be a stranger's.
_NO_PACKAGES = frozenset({"ArtFlow", "curves", "other_cleansers"})
_TIME_LIMIT = 600  # seconds for all imports


def tried(command: Sequence[str], place: Path, *, root: Path) -> dict[str, str | None]:
    """Run a child that tries parts of a toolbox, and read what it reports.

    Args:
        command: The module that the child runs, and its arguments.
        place: The child's current folder.
        root: The checkout, for messages.

    Returns:
        The name of each part to its error; None for a part that starts.

    Raises:
        ConfigError: If the child itself fails or takes too long.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=place, env=environment(), capture_output=True, text=True, check=False,
            timeout=_TIME_LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{root}: importing its scripts took more than {_TIME_LIMIT} s; try one by itself") from error
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        found: dict[str, str | None] = json.loads(last)
    except ValueError as error:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"{root}: trying its scripts failed with exit status {done.returncode}: {said}") from error
    return found


def tried_modules(attempt: str, names: Sequence[str], place: Path) -> dict[str, str | None]:
    """Import modules of a checkout in a child whose current folder is the checkout.

    Args:
        attempt: The function that imports one, as ``MODULE:FUNCTION``.
        names: The modules.
        place: The checkout.

    Raises:
        ConfigError: If the child itself fails or takes too long.
    """
    return tried([_CHILD, attempt, *names], place, root=place)


def state_of(kind: str, name: str, error: str | None) -> ScriptState:
    """The state of a part, with the package that is missing if that is the error."""
    module = _MISSING.search(error or "")
    top = module[1].partition(".")[0] if module else ""
    return ScriptState(kind, name, error or "", "" if top in _NO_PACKAGES else _PACKAGES.get(top, top))
