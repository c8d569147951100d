"""Finding, cloning and identifying a toolbox's checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from clp_plugin.config import config_file, load_settings
from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import staged_folder
from clp_plugin.files.reading import read_text

# Hooks and file monitors of a stranger's checkout are programs; git would start them.
_WITHOUT_HOOKS = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false")

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class CheckoutFacts:
    """The facts that tell one toolbox's checkout from another.

    Attributes:
        name: The toolbox's name in the catalogue and in the configuration file, such as ``"backdoorbench"``.
        title: The toolbox's name as its authors write it.
        variable: The environment variable that names its root.
        marks: Files and folders, relative to the root, that every checkout of it has.
        source: The URL of its public repository.
        tested: The commit that this package was tested with.
        left_out: Folders, as git's sparse checkout names them, that nothing here needs.
    """

    name: str
    title: str
    variable: str
    marks: tuple[str, ...]
    source: str
    tested: str
    left_out: tuple[str, ...] = ()

    def lacking(self, path: Path) -> list[str]:
        """The marks that a folder lacks; none of them in a checkout of this toolbox."""
        return [mark for mark in self.marks if not (path / mark).exists()]


@dataclass(frozen=True)
class Checkout:
    """A checkout of a toolbox.

    Attributes:
        root: The folder that it lies in.
        found_by: The option, variable or file that named that folder, for messages.
    """

    root: Path
    found_by: str


def find_checkout(facts: CheckoutFacts, root: Path | None = None, *, record: Path | None = None) -> Checkout:
    """Find a toolbox by ``--root``, its environment variable, the configuration file, the current folder, in that order.

    Args:
        facts: The toolbox that is looked for.
        root: The place that the user gave.
        record: A record's folder; the checkout that it lies in is the last guess.

    Raises:
        ConfigError: If a place that was named is no checkout, or none is found.
    """
    variable = os.environ.get(facts.variable)
    settings = load_settings().toolboxes.get(facts.name)
    named = [
        ("--root", root),
        (facts.variable, Path(variable) if variable else None),
        (str(config_file()), settings.root if settings else None),
    ]
    for found_by, place in named:
        if place is not None:
            return Checkout(_required(facts, place.expanduser().absolute(), found_by), found_by)
    guesses = [("the current folder", Path.cwd())]
    if record is not None:
        guesses.append(("the record's place", record.absolute().parent.parent))
    for found_by, place in guesses:
        if not facts.lacking(place):
            return Checkout(place, found_by)
    looked_in = ", ".join(str(place) for _, place in guesses)
    raise ConfigError(
        f"no {facts.title} checkout found: give --root PATH, set {facts.variable}, run "
        f"`bench toolbox install {facts.name}`, or work in its folder; looked in {looked_in}"
    )


def _required(facts: CheckoutFacts, place: Path, found_by: str) -> Path:
    if lacking := facts.lacking(place):
        raise ConfigError(
            f"{found_by}: {place} is no {facts.title} checkout: it lacks {', '.join(lacking)}; give the toolbox's root"
        )
    return place


def commit_of(root: Path) -> str:
    """The commit that is checked out, with ``+changes`` if tracked files differ; empty if git knows of none.

    Nothing that the checkout's own git configuration names is run, and nothing in it is written or fetched.
    """
    if shutil.which("git") is None:
        return ""
    here = ["-C", str(root)]
    head = _git([*here, "rev-parse", "--verify", "HEAD"])
    top = _git([*here, "rev-parse", "--show-toplevel"])
    settings = _git([*here, "config", "--list", "--name-only", "-z"])
    filters = [key for key in settings.stdout.split("\0") if key.startswith("filter.")]
    if head.returncode or Path(top.stdout.strip()).resolve() != root.resolve() or any("=" in key for key in filters):
        return ""
    unset = [part for key in filters for part in ("-c", f"{key}=")]
    alone = {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
    status = ["status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"]
    changed = _git([*unset, *here, *status], **alone)
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def stored_commit(root: Path) -> str:
    """The commit that is checked out as git's files name it, without starting git; empty if they do not.

    Whether files differ from it stays unknown; :func:`commit_of` looks.
    """
    folder = root / ".git"
    try:
        if folder.is_file():  # a second work tree, or a submodule
            folder = root / read_text(folder, raises=ConfigError).removeprefix("gitdir:").strip()
        head = read_text(folder / "HEAD", raises=ConfigError).strip()
        if head.startswith("ref:"):
            common = folder / "commondir"
            shared = folder / read_text(common, raises=ConfigError).strip() if common.is_file() else folder
            head = _reference(shared, head.removeprefix("ref:").strip())
    except ConfigError:
        return ""
    return head if _COMMIT.fullmatch(head) else ""


def _reference(folder: Path, name: str) -> str:
    if (folder / name).is_file():
        return read_text(folder / name, raises=ConfigError).strip()
    packed = (line.split() for line in read_text(folder / "packed-refs", raises=ConfigError).splitlines())
    return next((words[0] for words in packed if words[1:] == [name]), "")


def install(facts: CheckoutFacts, destination: Path, *, source: str | None = None, ref: str | None = None) -> Path:
    """Clone a toolbox.

    Args:
        facts: The toolbox to clone.
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
    origin = source or facts.source
    kept = ["/*", *(f"!{folder}" for folder in facts.left_out)]
    with staged_folder(destination) as place:
        clone = ["clone", "--quiet", "--no-checkout", origin, str(place)]
        _git_or_error(clone, f"cannot clone {origin}; without a network give --source FOLDER of a clone")
        _git_or_error(["-C", str(place), "sparse-checkout", "set", "--no-cone", *kept], "cannot prepare the checkout")
        wanted = ref or facts.tested
        _git_or_error(
            ["-C", str(place), "checkout", "--quiet", "--detach", wanted],
            f"cannot check out {wanted}; give another --ref",
        )
        if lacking := facts.lacking(place):
            raise ConfigError(
                f"{origin} at {wanted} is no {facts.title}: it lacks {', '.join(lacking)}; check --source"
            )
    return destination


def _git_or_error(arguments: list[str], problem: str) -> None:
    done = _git(arguments)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{problem} (git: {said})")


def _git(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("git") is None:
        raise ConfigError("git is not installed, and is needed to clone or to identify a toolbox; install git")
    # Never wait for a password: a source that asks for one is a mistake.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", **variables}
    command = ["git", *_WITHOUT_HOOKS, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
