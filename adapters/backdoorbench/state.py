"""Finding out which scripts of a checkout start: each is imported in a child process with the bridges in place."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from clp_plugin.errors import ConfigError
from clp_plugin.records.exchange import CheckoutState, ScriptState

from ..driving.checkout import Checkout, commit_of
from ..driving.process import environment
from . import toolbox_facts
from .attacks import attack_names
from .defenses import DEFENSES
from .registration import is_registered
from .surroundings import backdoorbench_workspace

_MISSING = re.compile(r"No module named '([\w.]+)'")
_PACKAGES = {
    "cv2": "opencv-python-headless", "skimage": "scikit-image", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn",
    "pywt": "PyWavelets", "umap": "umap-learn", "pytorch_grad_cam": "grad-cam",
}  # fmt: skip
# Scripts that start, and fail later for reasons of their own.
_KNOWN_FAILURES = {
    "trojannn": "needs a network that its authors trained, which the checkout does not hold",
}
_TIME_LIMIT = 600  # seconds for all imports


def check(checkout: Checkout) -> CheckoutState:
    """Try every script.

    Raises:
        ConfigError: If the child process itself fails.
    """
    root = checkout.root
    scripts = {facts.script: ("defense", name) for name, facts in DEFENSES.items() if (root / facts.script).is_file()}
    scripts |= {f"attack/{name}.py": ("attack", name) for name in attack_names(root)}
    errors = _try(root, list(scripts))
    states = [_state(kind, name, errors.get(script)) for script, (kind, name) in scripts.items()]
    return CheckoutState(root, checkout.found_by, commit_of(root), states, is_registered(root))


def _try(root: Path, scripts: list[str]) -> dict[str, str | None]:
    with backdoorbench_workspace(root) as place:
        command = [sys.executable, "-m", toolbox_facts.LAUNCHER, "check", *scripts]
        try:
            done = subprocess.run(
                command, cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=_TIME_LIMIT
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError(
                f"{root}: importing its scripts took more than {_TIME_LIMIT} s; try one by itself"
            ) from error
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        found: dict[str, str | None] = json.loads(last)
    except ValueError as error:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"{root}: trying its scripts failed with exit status {done.returncode}: {said}") from error
    return found


def _state(kind: str, name: str, error: str | None) -> ScriptState:
    if error is None:
        return ScriptState(kind, name, _KNOWN_FAILURES.get(name, "") if kind == "attack" else "")
    module = _MISSING.search(error)
    top = module[1].partition(".")[0] if module else ""
    return ScriptState(kind, name, error, _PACKAGES.get(top, top))
