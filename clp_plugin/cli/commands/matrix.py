"""``bench matrix``: every defense on every attack, cell by cell; what is there already is not run again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clp_plugin.bench.grid import GridSettings, defend_all
from clp_plugin.cli.commands.attack import BENCH, made_record
from clp_plugin.cli.console import command_line, emit_json, progress_bar, say
from clp_plugin.cli.options import MAX_SEED
from clp_plugin.cli.requests import MatrixRequest
from clp_plugin.cli.showing import show_cell
from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import filled_folder, write_text_atomically
from clp_plugin.files.places import folder_to_fill
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import ChecksAttacks, ReadsRecords, RunRequest, RunsAttacks, require
from clp_plugin.records.opening import load_adapter
from clp_plugin.registry import load_catalogue
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome


def run_matrix(request: MatrixRequest, *, as_json: bool) -> None:
    """Attack, defend, store, tabulate. A cell that fails is stored as failed and does not stop the others."""
    folder_to_fill(request.out)
    catalogue = load_catalogue(request.registry)
    device = pick_device(request.device)
    seeds = parse_seeds(request.seeds)
    attacks = request.attack or catalogue.names("attacks")
    defenses = request.defense or catalogue.names("defenses")
    adapter = load_adapter(catalogue, BENCH)
    grid = _Grid(
        adapter,
        require(adapter, RunsAttacks, toolbox=BENCH),
        request,
        GridSettings(catalogue, request.scale, request.protocol, device, command_line(), progress_bar),
    )
    checks = require(adapter, ChecksAttacks, toolbox=BENCH)
    for attack in (grid.attack(name, seed) for seed in seeds for name in attacks):
        checks.check_attack(attack.place, attack.method, attack.request)  # a mistake is told before hours of work
    for defense in defenses:
        catalogue.resolve("defenses", defense)
    start = time.perf_counter()
    outcomes = [
        outcome for seed in seeds for name in attacks for outcome in grid.row(grid.attack(name, seed), defenses)
    ]
    seconds = time.perf_counter() - start
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    written = _write_tables(request.out, outcomes)
    if as_json:
        emit_json({"cells": len(outcomes), "failed": len(failed), "seconds": seconds, "folder": str(request.out)})
    say(
        f"{len(outcomes)} cells, {len(failed)} failed, {seconds:.0f} s now; wrote {', '.join(written)} to {request.out}"
    )


@dataclass(frozen=True)
class _Attack:
    """One attack of the grid: its name for people, its record's place, and how it is to run."""

    name: str
    place: str
    method: str
    request: RunRequest


@dataclass(frozen=True)
class _Grid:
    adapter: ReadsRecords
    bench: RunsAttacks
    typed: MatrixRequest
    settings: GridSettings

    def attack(self, name: str, seed: int) -> _Attack:
        """What ``NAME`` or ``NAME:TARGET`` stands for."""
        method, _, target = name.partition(":")
        given = {"preset": self.typed.preset, **({"target": target} if target else {})}
        request = RunRequest(
            self.bench.attack_options(given),
            device=self.settings.device,
            seed=seed,
            report=say,
            reuse=True,
            catalogue=self.settings.catalogue,
        )
        return _Attack(name, str(self.typed.out / f"{name.replace(':', '-')}-seed{seed}"), method, request)

    def row(self, attack: _Attack, defenses: Sequence[str]) -> Iterator[Outcome]:
        """All defenses on the record of one attack."""
        label = f"{attack.name}, seed {attack.request.seed}"
        with made_record(self.bench, attack.place, attack.method, attack.request, label=label) as path:
            record = self.adapter.open(path)
        for cell in defend_all(record, defenses, self.settings, adapter=self.adapter, seed=attack.request.seed):
            if not cell.kept:
                show_cell(cell)
            yield cell.outcome


def _write_tables(out: Path, outcomes: Sequence[Outcome]) -> list[str]:
    from clp_plugin.reports.figures import save_figure
    from clp_plugin.reports.matrix import matrix_figure, matrix_markdown
    from clp_plugin.reports.tables import outcome_rows, to_csv

    if not any(outcome.status == "ok" for outcome in outcomes):
        raise ConfigError(f"{out}: no cell has a result; see what failed above")
    frame = outcomes_frame(outcomes)
    with filled_folder(out):
        to_csv(outcome_rows(frame), out / "matrix.csv")
        write_text_atomically(out / "matrix.md", matrix_markdown(frame))
        save_figure(matrix_figure(frame), out / "matrix")
    return ["matrix.csv", "matrix.md", "matrix.png", "matrix.pdf"]


def parse_seeds(text: str) -> Sequence[int]:
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
        raise ConfigError(f"--seeds: expected whole numbers from 0 to {MAX_SEED}, like 0,1 or 0:3, found {text!r}")
    return seeds
