"""The layout of the results of defenses: every name of a file or folder, and when a run stands there already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from clp_plugin.errors import ConfigError
from clp_plugin.files.locks import clear_dead
from clp_plugin.store.outcomes import Outcome, RunFacts, load_outcome

OUTCOME = "outcome.json"
TOOLBOX_OUTCOME = "clp_plugin_outcome.json"  # beside a toolbox's own files, so it says whose it is
MASK = "mask.json"
WEIGHTS, WEIGHTS_PICKLED = "weights.safetensors", "weights.pt"
# Below a record: what defenses left, and what was measured of it.
DEFENSES, ANALYSIS = "defense", "analysis"
# Below a record, and below the folder of records: what scripts printed that came to nothing, and which those were.
LOGS = "clp_plugin_logs"


def clear_dead_runs(record: Path) -> None:
    """Delete what runs that no longer exist have left of a record's results, and put back what they had set aside."""
    clear_dead(record.parent, names=())
    clear_dead(record, names=(DEFENSES, ANALYSIS, LOGS))


def run_folder(record: Path, defense: object, facts: RunFacts, *, n_budget: int | None = None) -> Path:
    """The folder of a run of one of our methods, unless its toolbox has a place for it.

    Args:
        record: The record's folder.
        defense: The defense that runs; a dataclass says by its defaults which options are usual.
        facts: The facts that are known of the run.
        n_budget: Number of images that was asked for, if any.
    """
    return record / DEFENSES / facts.method / slug(defense, facts, n_budget=n_budget)


def failure_file(record: Path, method: str) -> Path:
    """The file that says that a toolbox's own script failed on a record, until it ends well."""
    return record / LOGS / f"{method}.json"


def stored_run(folder: Path, facts: RunFacts) -> Outcome | None:
    """The outcome of this very run, if it stands in the folder and the run ended well."""
    earlier = _outcome(folder)
    return earlier if earlier is not None and earlier.status == "ok" and facts.same_run(earlier) else None


def require_replaceable(folder: Path, facts: RunFacts, *, force: bool) -> bool:
    """A result is replaced by the same run again, or with ``force``; a folder that holds anything else never is.

    Returns:
        Whether the same run stands there.

    Raises:
        ConfigError: If the folder must stay.
    """
    if folder.is_file():
        raise ConfigError(f"--out: {folder} is a file; expected a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    earlier = _outcome(folder)
    if earlier is None:
        raise ConfigError(f"{folder} holds files that `bench defend` did not write; choose another folder with --out")
    same = facts.same_run(earlier)
    if not same and not force and earlier.status == "ok":
        given = ", ".join(f"{key}={value}" for key, value in earlier.options.items())
        other = "" if earlier.provenance.get("sha256") == facts.provenance.sha256 else ", of another model"
        raise ConfigError(
            f"{folder} holds the result of {earlier.method} with {given}, seed {earlier.seed}, budget {earlier.budget}{other}; "
            "give --force to replace it, or another folder with --out"
        )
    return same


def slug(defense: object, facts: RunFacts, *, n_budget: int | None = None) -> str:
    """A folder name that tells runs apart by what is not usual about them: ``default-seed0``, ``u2.5-oracle-seed1``."""
    usual = {each.name: each.default for each in fields(defense)} if is_dataclass(defense) else {}
    parts = [_short(name, value) for name, value in facts.options.items() if name not in usual or usual[name] != value]
    if n_budget is not None:
        parts.append(f"n{n_budget}")
    if facts.protocol == "oracle":
        parts.append("oracle")
    return "-".join([*(parts or ["default"]), f"seed{facts.seed}"]).replace("/", "_")


def changed_options(options: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """``"epochs 20 -> 5, lr 0.005 -> 0.01"``; empty if nothing differs."""
    different = {name: value for name, value in options.items() if usual.get(name) != value}
    return ", ".join(f"{name} {usual.get(name)} -> {value}" for name, value in different.items())


def _outcome(folder: Path) -> Outcome | None:
    return load_outcome(folder / OUTCOME) if (folder / OUTCOME).is_file() else None


def _short(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return f"{name}={value}"
    return f"{name}{value:g}" if isinstance(value, (int, float)) else value
