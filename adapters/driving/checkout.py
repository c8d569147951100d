"""Where the toolbox is: found, cloned, identified."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from clp_plugin.config import config_file, load_settings
from clp_plugin.errors import ConfigError
from clp_plugin.files.checkpoints import staged_folder

from ..backdoorbench.datasets import ROOT_VARIABLE

NAME = "backdoorbench"
SOURCE = "https://github.com/SCLBD/BackdoorBench"
TESTED = "f02e3534645f0ee63d6848653062cd6c0d6c400d"
_MARKS = ("attack", "defense", "utils/save_load_attack.py")
# Notebooks and a second toolbox: 100 MB that nothing here needs, and that some mirrors lack.
_LEFT_OUT = ("/*", "!/analysis/Demos/", "!/backdoorbench_nlp/")


@dataclass(frozen=True)
class Checkout:
    """A checkout of the toolbox.

    Attributes:
        root: Its folder.
        found_by: What named it.
    """

    root: Path
    found_by: str


def is_checkout(path: Path) -> bool:
    """Whether a folder is a checkout of the toolbox, judged by names."""
    return all((path / mark).exists() for mark in _MARKS)


def find_checkout(root: Path | None = None, *, record: Path | None = None) -> Checkout:
    """The toolbox: from ``--root``, ``$BACKDOORBENCH_ROOT``, the configuration file, the current folder, in that order.

    Args:
        root: As given by the user.
        record: A record's folder; the checkout that it lies in is the last guess.

    Raises:
        ConfigError: If a place that was named is no checkout, or none is found.
    """
    variable = os.environ.get(ROOT_VARIABLE)
    settings = load_settings().toolboxes.get(NAME)
    named = [
        ("--root", root),
        (ROOT_VARIABLE, Path(variable) if variable else None),
        (str(config_file()), settings.root if settings else None),
    ]
    for found_by, place in named:
        if place is not None:
            return Checkout(_required(place.expanduser().absolute(), found_by), found_by)
    guesses = [("the current folder", Path.cwd())]
    if record is not None:
        guesses.append(("the record's place", record.absolute().parent.parent))
    for found_by, place in guesses:
        if is_checkout(place):
            return Checkout(place, found_by)
    raise ConfigError(
        f"no BackdoorBench checkout found: give --root PATH, set {ROOT_VARIABLE}, run `bench toolbox install {NAME}`, or "
        f"work in its folder; looked in {', '.join(str(place) for _, place in guesses)}"
    )


def _required(place: Path, found_by: str) -> Path:
    if not is_checkout(place):
        lacking = ", ".join(mark for mark in _MARKS if not (place / mark).exists())
        raise ConfigError(
            f"{found_by}: {place} is no BackdoorBench checkout: it lacks {lacking}; give the toolbox's root"
        )
    return place


def commit_of(root: Path) -> str:
    """The commit that is checked out, with ``+changes`` if tracked files differ; empty if git knows of none."""
    if shutil.which("git") is None:
        return ""
    head = _git(["-C", str(root), "rev-parse", "--verify", "HEAD"])
    top = _git(["-C", str(root), "rev-parse", "--show-toplevel"])
    if head.returncode or Path(top.stdout.strip()).resolve() != root.resolve():
        return ""
    changed = _git(["-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return head.stdout.strip() + "+changes" * bool(changed.stdout.strip())


def install(destination: Path, *, source: str | None = None, ref: str | None = None) -> Path:
    """Clone the toolbox.

    Args:
        destination: A folder that does not exist yet, or is empty.
        source: URL or folder of a git repository; the public one if None.
        ref: Commit, tag or branch; the commit that this package was tested with if None.

    Returns:
        The checkout.

    Raises:
        ConfigError: If there is no git, no network, no such commit, or something lies at the destination.
    """
    if destination.exists() and (destination.is_file() or any(destination.iterdir())):
        raise ConfigError(f"{destination} is not empty; choose another --destination, or delete it to install again")
    origin = source or SOURCE
    with staged_folder(destination) as place:
        clone = ["clone", "--quiet", "--no-checkout", origin, str(place)]
        _must(clone, f"cannot clone {origin}; without a network give --source FOLDER of a clone")
        _must(["-C", str(place), "sparse-checkout", "set", "--no-cone", *_LEFT_OUT], "cannot prepare the checkout")
        wanted = ref or TESTED
        _must(
            ["-C", str(place), "checkout", "--quiet", "--detach", wanted],
            f"cannot check out {wanted}; give another --ref",
        )
        if not is_checkout(place):
            raise ConfigError(f"{origin} at {wanted} is no BackdoorBench: it lacks {', '.join(_MARKS)}; check --source")
    return destination


def _must(arguments: list[str], problem: str) -> None:
    done = _git(arguments)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{problem} (git: {said})")


def _git(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which("git") is None:
        raise ConfigError("git is not installed, and is needed to clone or to identify a toolbox; install git")
    # Never wait for a password: a source that asks for one is a mistake.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL
    )
