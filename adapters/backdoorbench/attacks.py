"""The toolbox's own attacks: a record made by an unmodified script."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clp_plugin.errors import ConfigError, RecordError, ToolboxError, unknown_name
from clp_plugin.files.locks import claimed
from clp_plugin.records.exchange import RunRequest

from ..driving.checkout import Checkout
from ..driving.process import Script, run_script
from ..driving.results import RUN_LOG, log_file
from ..driving.scripts import Declared, command_line, declared_options
from ..driving.workspace import move_in
from . import toolbox_facts
from .attack_result import FILE
from .datasets import FACTS, DatasetFacts
from .downloads import require_no_download
from .surroundings import add_data, backdoorbench_workspace

# Declare the options that attacks share; one that a script does not take it refuses itself.
_COMMON = (Path("attack", "prototype.py"), Path("attack", "badnet.py"))
_NAME = re.compile(r"^[\w][\w.+-]*$", re.ASCII)


@dataclass(frozen=True)
class AttackPlan:
    """One run of an attack, ready to start.

    Attributes:
        target: The folder of the new record.
        dataset: The data set's name in the toolbox.
        data: The folder of the data set.
        script: The attack's script, and how it is to run.
    """

    target: Path
    dataset: str
    data: Path
    script: Script


def plan_attack(checkout: Checkout, name: str, method: str, request: RunRequest) -> AttackPlan:
    """Find out all that can be known before an attack's script starts; nothing is run or written.

    Args:
        checkout: The toolbox's checkout.
        name: Name of the new record: letters, digits, ``_``, ``.``, ``+`` and ``-``.
        method: The attack's script without ``.py``.
        request: Options of the script; ``dataset`` says whose configuration to take (default cifar10).

    Raises:
        ConfigError: If the attack, an option or the name cannot be used, or the record exists already.
        RecordError: If the data set is missing, or is not the published one.
    """
    root = checkout.root
    if method not in (known := toolbox_facts.attack_names(root)):
        raise ConfigError(f"{root}: {unknown_name('attack', method, known)}")
    if not _NAME.match(name):
        raise ConfigError(f"the record's name {name!r} becomes a folder in record/: use letters, digits, _ . + and -")
    target = root / "record" / name
    _require_free(target, force=request.force)
    facts, data = _data(root, str(request.options.get("dataset", "cifar10")))
    script = f"attack/{method}.py"
    declared = declared_options(root / script, *(root / common for common in _COMMON))
    options = {**_trigger_settings(root, method, declared), **_options(root, name, facts, request)}
    arguments = command_line(script, declared, options)
    run = Script(script, arguments, toolbox_facts.LAUNCHER, request.trust, request.fast_cpu)
    require_no_download(facts, data)
    return AttackPlan(target, facts.name, data, run)


def run_attack(checkout: Checkout, plan: AttackPlan, request: RunRequest) -> Path:
    """Run a planned attack; its record appears when it has ended well, whole.

    Returns:
        The record's folder.

    Raises:
        ConfigError: If the record exists by now, or another run is making it.
        ToolboxError: If the script fails.
    """
    target, name = plan.target, plan.target.name
    log = log_file(target.parent, f"attack-{name}")
    with claimed(target, wait=False), backdoorbench_workspace(checkout.root) as place:
        _require_free(target, force=request.force)  # another run may have ended since
        add_data(place, f"data/{plan.dataset}", plan.data)
        run_script(plan.script, place, log, report=request.report, time_limit=request.time_limit)
        produced = place / "record" / name
        if not (produced / FILE).is_file():
            raise ToolboxError(f"{plan.script.path} ended without writing {FILE}; its output is in {log}")
        shutil.move(log, produced / RUN_LOG)
        move_in(produced, target)
    with contextlib.suppress(OSError):  # logs of other runs that failed stay
        log.parent.rmdir()
    return target


def _require_free(target: Path, *, force: bool) -> None:
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already; choose another name, or give --force to replace it")


def _options(root: Path, name: str, facts: DatasetFacts, request: RunRequest) -> dict[str, object]:
    settings = Path("config", "attack", "prototype", f"{facts.name}.yaml")
    if not (root / settings).is_file():
        raise ConfigError(f"{root / settings} is missing; the toolbox has no settings for attacks on {facts.name}")
    on_cpu = request.device == "cpu"
    return {
        "yaml_path": f"./{settings.as_posix()}",
        "dataset": facts.name,
        "dataset_path": "./data",
        "save_folder_name": name,
        "device": request.device,
        "random_seed": request.seed,
        "num_workers": 0 if on_cpu else 4,
        "amp": request.fast_cpu or not on_cpu,
        **request.options,
    }


def _trigger_settings(root: Path, method: str, declared: Mapping[str, Declared]) -> dict[str, object]:
    """The attack's own configuration, given because one script looks for its in a folder that is spelled otherwise."""
    folders = [root / "config" / "attack" / method, *sorted((root / "config" / "attack").glob(f"{method}*"))]
    found = next((folder for folder in folders if (folder / "default.yaml").is_file()), None)
    if found is None or "bd_yaml_path" not in declared:
        return {}
    return {"bd_yaml_path": f"./{(found / 'default.yaml').relative_to(root).as_posix()}"}


def _data(root: Path, name: str) -> tuple[DatasetFacts, Path]:
    if name not in FACTS:
        raise ConfigError(f"backdoorbench: {unknown_name('data set', name, FACTS)}")
    facts, place = FACTS[name], root / "data" / name
    if not (place / facts.holds).exists():
        raise RecordError(
            f"{place}: expected {name} with {facts.holds}; put the data set there, in torchvision's layout (a link will do)"
        )
    return facts, place
