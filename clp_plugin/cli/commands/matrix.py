"""``bench matrix``: every defense on every attack, cell by cell; what is there already is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clp_plugin.adapters.builtin.record_files import DESCRIPTION, UNFINISHED, read_description
from clp_plugin.adapters.builtin.settings import AttackSettings
from clp_plugin.bench.grid import GridSettings, defend_all
from clp_plugin.cli.commands.attack import attack_settings, train_record
from clp_plugin.cli.console import command_line, emit_json, progress_bar, say
from clp_plugin.cli.options import MAX_SEED
from clp_plugin.cli.requests import AttackRequest, MatrixRequest
from clp_plugin.cli.showing import show_cell
from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import filled_folder, write_text_atomically
from clp_plugin.files.places import folder_to_fill
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.opening import load_adapter
from clp_plugin.registry import Catalogue, load_catalogue
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
    for attack in attacks:  # a misspelled name is told before hours of work
        _settings(request, catalogue, attack, seeds[0])
    for defense in defenses:
        catalogue.resolve("defenses", defense)
    start = time.perf_counter()
    grid = GridSettings(catalogue, request.scale, request.protocol, device, command_line(), progress_bar)
    outcomes = [
        outcome for seed in seeds for attack in attacks for outcome in _row(request, grid, attack, defenses, seed)
    ]
    seconds = time.perf_counter() - start
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    written = _write_tables(request.out, outcomes)
    if as_json:
        emit_json({"cells": len(outcomes), "failed": len(failed), "seconds": seconds, "folder": str(request.out)})
    say(
        f"{len(outcomes)} cells, {len(failed)} failed, {seconds:.0f} s now; wrote {', '.join(written)} to {request.out}"
    )


def _row(
    request: MatrixRequest, grid: GridSettings, attack: str, defenses: Sequence[str], seed: int
) -> Iterator[Outcome]:
    """All defenses on one record."""
    path = request.out / f"{attack.replace(':', '-')}-seed{seed}"
    _attack(request, grid.catalogue, attack, seed, path, grid.device)
    adapter = load_adapter(grid.catalogue, "builtin")
    for cell in defend_all(adapter.open(path), defenses, grid, adapter=adapter, seed=seed):
        if not cell.kept:
            show_cell(cell)
        yield cell.outcome


def _settings(request: MatrixRequest, catalogue: Catalogue, attack: str, seed: int) -> AttackSettings:
    method, _, target = attack.partition(":")
    typed = AttackRequest(out=request.out, method=method, preset=request.preset, target=target or None, seed=seed)
    return attack_settings(typed, catalogue)


def _attack(request: MatrixRequest, catalogue: Catalogue, attack: str, seed: int, path: Path, device: str) -> None:
    settings = _settings(request, catalogue, attack, seed)
    if (path / DESCRIPTION).is_file():
        if read_description(path).settings != json.loads(json.dumps(settings.to_json())):
            raise ConfigError(
                f"{path} holds a record of other settings than preset {request.preset!r}; give another --out"
            )
        if not (path / UNFINISHED).is_file():
            return
    attack_type = catalogue.resolve("attacks", settings.method)
    train_record(settings, path, device, attack_type=attack_type, label=f"{attack}, seed {seed}")


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
