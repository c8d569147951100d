"""``bench leaderboard run``: records of any toolbox times methods times seeds, resumable and spread over processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path

from clp_plugin.bench.grid.events import Ended
from clp_plugin.bench.grid.executor import Executor
from clp_plugin.bench.grid.here import ThisProcess
from clp_plugin.bench.grid.local import LocalProcesses, cores
from clp_plugin.bench.grid.methods import Method, parse_method
from clp_plugin.bench.grid.on_ray import RayCluster
from clp_plugin.bench.grid.plan import AttackFirst, GridSettings, Planned, Task, foreseen, seconds_by_method, shard
from clp_plugin.bench.grid.work import attack_request
from clp_plugin.bench.run import make_defense
from clp_plugin.cli.commands.grid_display import Display, display
from clp_plugin.cli.console import command_line, emit_json, say, show_table
from clp_plugin.cli.grid_request import GridRequest
from clp_plugin.cli.options import MAX_SEED
from clp_plugin.cli.request_files import with_file
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.files.places import folder_to_fill
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import ChecksAttacks
from clp_plugin.records.opening import find_adapter, locate_record
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.store.outcomes import load_outcomes

Plan = Sequence[tuple[Task, list[Planned] | None]]
SOME_FAILED = 3  # exit status: the grid is done, and not all of it went well


def run_grid(request: GridRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Plan, run what is due, and say what failed."""
    if request.config is not None:
        request = with_file(request, request.config, typed)
    catalogue = load_catalogue(request.registry)
    settings = _settings(request)
    methods = [parse_method(text, catalogue) for text in request.method or catalogue.usual_defenses()]
    _check_methods(methods, settings, catalogue)
    tasks = shard(_tasks(request, tuple(methods), settings, catalogue), request.shard)
    plan = [(task, foreseen(task, settings, catalogue)) for task in tasks]
    if request.dry_run:
        _show_plan(plan, settings, as_json=as_json)
        return
    executor = _executor(request, len(tasks))
    start = time.perf_counter()
    with display(_count(plan), as_json=as_json) as shown:
        due = [task for task, cells in plan if _is_due(cells, settings, shown)]
        executor.run(due, settings, shown)
    _conclude(shown, settings, seconds=time.perf_counter() - start, as_json=as_json)


def _settings(request: GridRequest) -> GridSettings:
    return GridSettings(
        out=folder_to_fill(request.out),
        registry=request.registry,
        root=request.root,
        data=request.data,
        scale=request.scale,
        protocol=request.protocol,
        n_budget=request.n_budget,
        device=pick_device(request.device),
        again=request.again,
        trust=request.trust,
        time_limit=request.time_limit,
        fast_cpu=request.fast_cpu,
        command=command_line(),
    )


def _executor(request: GridRequest, tasks: int) -> Executor:
    if request.executor == "ray":
        if request.address is not None and request.workers is not None:
            raise ConfigError("--workers has no meaning with --address: the cluster's cores are used; leave it out")
        return RayCluster(request.address, request.workers, request.threads)
    if request.address is not None:
        raise ConfigError("--address has no meaning without --executor ray; leave it out")
    if request.workers == 0:
        return ThisProcess()
    usual = max(1, min(cores() // request.threads, tasks))
    return LocalProcesses(usual if request.workers is None else request.workers, request.threads)


def _check_methods(methods: Sequence[Method], settings: GridSettings, catalogue: Catalogue) -> None:
    """A mistake is told before hours of work."""
    for position, method in enumerate(methods):
        if method in methods[:position]:
            raise ConfigError(f"--method: {method} is given twice")
        if method.is_own:
            make_defense(catalogue, method.name, "", method.options, scale=settings.scale)


def _tasks(
    request: GridRequest, methods: tuple[Method, ...], settings: GridSettings, catalogue: Catalogue
) -> list[Task]:
    """One task a record, in an order that is the same on every machine; by its full path, as outcomes are read anywhere."""
    seeds = tuple(dict.fromkeys(parse_seeds(request.seeds)))
    found = [Task(path.absolute(), methods, seeds, request.toolbox) for path in _records(request, catalogue)]
    for seed in parse_seeds(request.attack_seeds, flag="--attack-seeds"):
        for name in request.attack:
            attack = AttackFirst(name, request.preset, seed)
            place = settings.store.record(attack.folder).absolute()
            _check_attack(attack, place, settings, catalogue)
            found.append(Task(place, methods, seeds, attack=attack))
    if not found:
        raise ConfigError("expected records: give --record FOLDER or a quoted pattern, or --attack NAME to make some")
    return found


def _check_attack(attack: AttackFirst, place: Path, settings: GridSettings, catalogue: Catalogue) -> None:
    method, bench, asked = attack_request(attack, settings, catalogue)
    if isinstance(bench, ChecksAttacks):
        bench.check_attack(str(place), method, asked)


def _records(request: GridRequest, catalogue: Catalogue) -> list[Path]:
    """The records that were asked for, each once; of what a pattern finds, those that are records."""
    found: dict[Path, None] = {}
    for text in request.record:
        matches = sorted(glob(text))  # noqa: PTH207 - a pattern may begin anywhere
        if matches and matches != [text]:
            records = [Path(match) for match in matches if _is_record(Path(match), request.toolbox, catalogue)]
            if not records:
                raise RecordError(
                    f"--record {text}: {len(matches)} places fit, and none is a record of a known toolbox"
                )
            found |= dict.fromkeys(records)
            continue
        path = locate_record(Path(text), toolbox=request.toolbox, root=request.root, catalogue=catalogue)
        find_adapter(path, toolbox=request.toolbox, catalogue=catalogue)
        found[path] = None
    return list(found)


def _is_record(path: Path, toolbox: str | None, catalogue: Catalogue) -> bool:
    try:
        return path.is_dir() and find_adapter(path, toolbox=toolbox, catalogue=catalogue).sniff(path)
    except (RecordError, ConfigError):
        return False


def _count(plan: Plan) -> int:
    """Number of cells; of a record that was not opened yet all are counted that there may be."""
    return sum(len(task.methods) * len(task.seeds) if cells is None else len(cells) for task, cells in plan)


def _is_due(cells: list[Planned] | None, settings: GridSettings, shown: Display) -> bool:
    """Whether a record needs a worker; what is there of one that does not is told at once."""
    if cells is None:
        return settings.again != "never"
    if any(each.due for each in cells):
        return True
    for each in cells:
        if each.earlier is not None:
            shown.keep(Ended(str(each.cell.record), each.cell.label, each.earlier, kept=True))
    return False


def _show_plan(plan: Plan, settings: GridSettings, *, as_json: bool) -> None:
    known = _seconds(settings.out)
    rows = [row for task, cells in plan for row in _plan_rows(task, cells)]
    due = [str(row["method"]) for row in rows if row["due"]]
    unknown = sorted(set(due) - known.keys())
    total = sum(known.get(method, 0.0) for method in due)
    if as_json:
        emit_json({"cells": rows, "seconds": total, "unknown": unknown})
        return
    show_table(
        "cells",
        ("record", "method", "seed", "there", "will run"),
        [
            (row["record"], row["asked"], row["seed"], row["there"] or "-", "yes" if row["due"] else "no")
            for row in rows
        ],
    )
    lacking = f", and those of {', '.join(unknown)}, of which no time is known yet" if unknown else ""
    say(f"{len(due)} of {len(rows)} cells will run: about {total:.0f} s of methods{lacking}")


def _plan_rows(task: Task, cells: list[Planned] | None) -> Iterator[dict[str, object]]:
    if cells is None:  # not opened: nothing is there
        for method in task.methods:
            for seed in task.seeds:
                yield _plan_row(task, method, seed, there=None, due=True)
        return
    for each in cells:
        there = None if each.earlier is None else each.earlier.status
        yield _plan_row(task, each.cell.method, each.cell.key.seed, there=there, due=each.due)


def _plan_row(task: Task, method: Method, seed: int, *, there: str | None, due: bool) -> dict[str, object]:
    name = str(replace(method, options={}))
    return {"record": str(task.record), "method": name, "asked": str(method), "seed": seed, "there": there, "due": due}


def _seconds(folder: Path) -> dict[str, float]:
    """Mean seconds of each method over what is stored in a grid's folder."""
    outcomes = load_outcomes(folder) if folder.is_dir() else []
    return {str(Method(*whose)): seconds for whose, seconds in seconds_by_method(outcomes).items()}


def _conclude(shown: Display, settings: GridSettings, *, seconds: float, as_json: bool) -> None:
    """Say what failed; the exit status tells it to scripts."""
    if as_json:
        emit_json({**shown.counts(), "seconds": seconds, "folder": str(settings.out), "records_failed": shown.lost})
    else:
        counted = ", ".join(f"{count} {name}" for name, count in shown.counts().items())
        say(f"{counted}, {seconds:.0f} s now; `bench leaderboard show {settings.out}` ranks the methods")
        for label, error in [*shown.failed, *shown.lost.items()]:
            say(f"failed: {label}: {error}")
        if shown.failed:
            say("--again failed tries them again")
    if shown.failed or shown.lost:
        raise SystemExit(SOME_FAILED)


def parse_seeds(text: str, *, flag: str = "--seeds") -> Sequence[int]:
    """``"0,1,2"`` or ``"0:3"`` (the end excluded).

    Raises:
        ConfigError: If it is neither, or a seed is one that no generator takes.
    """
    first, colon, last = text.partition(":")
    try:
        seeds = range(int(first), int(last)) if colon else [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    ends = [seeds[0], seeds[-1]] if isinstance(seeds, range) and seeds else seeds  # a range may be too long for len
    if not ends or min(ends) < 0 or max(ends) > MAX_SEED:
        raise ConfigError(f"{flag}: expected whole numbers from 0 to {MAX_SEED}, like 0,1 or 0:3, found {text!r}")
    return seeds
