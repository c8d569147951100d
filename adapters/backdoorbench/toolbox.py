"""BackdoorBench as a toolbox: its records read, its scripts run, its formats written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from clp_plugin.errors import CheckpointError, RecordError, ToolboxError
from clp_plugin.files.locks import claimed
from clp_plugin.records.adapter import (
    ChecksAttacks,
    ChecksScripts,
    InstallsToolbox,
    LocatesRecords,
    RegistersPlugin,
    RunsAttacks,
    RunsDefenses,
    WritesResults,
)
from clp_plugin.records.exchange import CheckoutState, RunRequest, ToolboxResult

from ..driving import checkout
from ..driving.process import Script, run_script
from ..driving.results import RUN_LOG, log_file, require_free
from ..driving.workspace import move_in
from . import attacks, registration, state, toolbox_facts
from .datasets import facts_of, find_data_root
from .defenses import DEFENSES, budget_of, defense_named, plan
from .downloads import require_no_download
from .export import export_defense
from .options import attack_options
from .record import BackdoorBenchAdapter
from .results import RESULT, read_model, read_reported
from .surroundings import add_data, add_record, backdoorbench_workspace
from .toolbox_facts import BACKDOORBENCH


class BackdoorBench(
    BackdoorBenchAdapter,
    LocatesRecords,
    RunsAttacks,
    ChecksAttacks,
    RunsDefenses,
    WritesResults,
    InstallsToolbox,
    ChecksScripts,
    RegistersPlugin,
):
    """All that a checkout of BackdoorBench can do."""

    def locate(self, name: str, *, root: Path | None = None) -> Path:
        """``record/NAME`` of the checkout.

        Raises:
            RecordError: If there is none of that name; lists those that there are.
            ConfigError: If no checkout is found.
        """
        found = checkout.find_checkout(BACKDOORBENCH, root)
        path = found.root / "record" / name
        if not path.is_dir():
            there = sorted(item.name for item in (found.root / "record").glob("[!.]*") if self.sniff(item))
            raise RecordError(
                f"no record {name!r} in {path.parent} (found by {found.found_by}); there: {', '.join(there) or 'none'}"
            )
        return path

    def install(self, destination: Path, *, source: str | None, ref: str | None) -> Path:
        return checkout.install(BACKDOORBENCH, destination, source=source, ref=ref)

    def check(self, *, root: Path | None = None) -> CheckoutState:
        return state.check(checkout.find_checkout(BACKDOORBENCH, root))

    def register(self, *, root: Path | None = None, remove: bool = False) -> Sequence[Path]:
        return registration.register(checkout.find_checkout(BACKDOORBENCH, root).root, remove=remove)

    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        """Run a script on a record; its folder of results appears when it has ended well, whole.

        Raises:
            ConfigError: If the defense, an option or the record's network cannot be used, or a result is there already.
            RecordError: If something of the record or its data set is missing, or the data set is not the published one.
            ToolboxError: If the script fails, or leaves a result that cannot be used.
        """
        found = checkout.find_checkout(BACKDOORBENCH, request.root, record=record)
        defense = defense_named(method)
        target = request.destination or record / "defense" / defense.folder
        require_free(target, force=request.force)
        result = self.attack_facts(record, trust=request.trust)
        data = find_data_root(result, checkout=found.root)
        request.report(f"BackdoorBench at {found.root} (found by {found.found_by})")
        log = log_file(record, method)
        with claimed(target, wait=False), backdoorbench_workspace(found.root) as place:
            require_free(target, force=request.force)  # another run may have ended since
            name = add_record(place, result)
            add_data(place, result.data_path, data)
            planned = plan(
                found.root, method, result, request.options, record_name=name, device=request.device,
                seed=request.seed, mixed_precision=request.fast_cpu or request.device != "cpu",
            )  # fmt: skip
            require_no_download(facts_of(result.dataset, result.folder), data)
            script = Script(defense.script, planned.arguments, toolbox_facts.LAUNCHER, request.trust, request.fast_cpu)
            seconds = run_script(script, place, log, report=request.report, time_limit=request.time_limit)
            produced = place / "record" / name / "defense" / defense.folder
            model = _usable(produced, planned.options, script.path, trust=request.trust)
            shutil.move(log, produced / RUN_LOG)
            move_in(produced, target)
        with contextlib.suppress(OSError):  # logs of other runs that failed stay
            log.parent.rmdir()
        # The seed stands apart from options, lest the seeds of one method pass for several methods.
        options = {
            name: value for name, value in planned.options.items() if (name, value) != ("random_seed", request.seed)
        }
        return ToolboxResult(
            model, target, read_reported(target, method), seconds, planned.budget, defense.oracle, options,
            log=target / RUN_LOG, commit=checkout.commit_of(found.root),
        )  # fmt: skip

    def read_defense(self, record: Path, method: str) -> ToolboxResult:
        """Read a result that is there already. Its options are not stored with it, so they are not known.

        Raises:
            RecordError: If there is none, or it cannot be used.
        """
        defense = DEFENSES.get(method)
        folder = record / "defense" / (defense.folder if defense else method)
        if not (folder / RESULT).is_file():
            there = sorted(item.parent.name for item in (record / "defense").glob(f"[!.]*/{RESULT}"))
            raise RecordError(f"{folder}: no {RESULT}; results there are: {', '.join(there) or 'none'}")
        return ToolboxResult(
            model=read_model(folder, options={}),
            folder=folder,
            reported=read_reported(folder, method),
            seconds=0.0,
            budget=budget_of(defense, {}) if defense else "unknown",
            oracle=defense.oracle if defense else "",
            options={},
        )

    def result_folder(self, record: Path, method: str, options: Mapping[str, object]) -> Path:
        parity = "_parity" if options.get("pairing") == "registration" else ""
        own = "" if method == "clp" else f"_{method}"
        return record / "defense" / f"{registration.NAME}{own}{parity}"

    export = staticmethod(export_defense)
    attack_options = staticmethod(attack_options)

    @contextlib.contextmanager
    def attacked(self, name: str, method: str, request: RunRequest) -> Iterator[Path]:
        found = checkout.find_checkout(BACKDOORBENCH, request.root)
        yield attacks.run_attack(found, attacks.plan_attack(found, name, method, request), request)

    def check_attack(self, name: str, method: str, request: RunRequest) -> None:
        attacks.plan_attack(checkout.find_checkout(BACKDOORBENCH, request.root), name, method, request)


def _usable(produced: Path, options: Mapping[str, Any], script: str, *, trust: bool) -> nn.Module:
    """The repaired network; what cannot be used must not replace what is there."""
    try:
        return read_model(produced, options=options, trust=trust)
    except (CheckpointError, RecordError) as error:
        raise ToolboxError(f"{script} ended well, but left nothing that can be used: {error}") from error
