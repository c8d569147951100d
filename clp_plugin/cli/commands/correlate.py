"""``bench correlate`` and ``bench sweep``: the evidence, measured on test images; nothing here chooses a parameter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from clp_plugin.bench.run import make_defense
from clp_plugin.cli.commands.scan import note_layers
from clp_plugin.cli.commands.searching import choose_threshold
from clp_plugin.cli.console import emit_json, progress_bar, say
from clp_plugin.cli.requests import USUAL_SWEEP, CorrelateRequest, SweepRequest
from clp_plugin.cli.showing import show_correlation, show_sweep
from clp_plugin.errors import ConfigError
from clp_plugin.evidence.correlation import Correlation, correlate
from clp_plugin.evidence.sweep import SweepRow, parse_range, sweep
from clp_plugin.evidence.tac import trigger_activated_change
from clp_plugin.files.atomic import filled_folder
from clp_plugin.files.places import folder_to_fill, inputs_kept
from clp_plugin.fusion.layers import fuse
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.opening import locate_record, open_record
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import parse_layers, select
from clp_plugin.store.layout import ANALYSIS, clear_dead_runs
from clp_plugin.types import Floats, Mask, Record, Scores

_TAC_NORMS = ("l2", "l1")


def default_u(record: Record, catalogue: Catalogue) -> float | None:
    """The u that CLP would take for the record's data set; None if a catalogue leaves the choice to the weights."""
    _, options = make_defense(catalogue, "clp", record.provenance.dataset, {})
    return None if options["u"] == "auto" else float(options["u"])


def correlate_record(request: CorrelateRequest, *, as_json: bool) -> None:
    """Measure TAC, correlate, write CSV and figure, print."""
    if request.tac_norm not in _TAC_NORMS:
        raise ConfigError(f"--tac-norm: expected l2 or l1, found {request.tac_norm!r}")
    if request.max_images is not None and request.max_images < 1:
        raise ConfigError(f"--max-images: expected at least 1, found {request.max_images}")
    catalogue = load_catalogue(request.registry)
    path = locate_record(request.record, toolbox=request.toolbox, root=request.root, catalogue=catalogue)
    clear_dead_runs(path)
    record = open_record(
        path, toolbox=request.toolbox, trust=request.trust, data=request.data, catalogue=catalogue
    )  # fmt: skip
    folder = request.out or path / ANALYSIS / f"correlate-{request.score}-{request.norm}-{request.tac_norm}"
    folder_to_fill(folder)  # told before the work
    view = fuse(record.model, record.input_shape)
    scores = score(view, score=request.score, norm=request.norm)
    layers = parse_layers(request.layers)
    note_layers(view, layers, scores)
    u = default_u(record, catalogue) if request.u is None else request.u
    if u is None:
        raise ConfigError("--u: the catalogue's u of clp is auto; give a number")
    mask = select(scores, u, layers=layers)
    with progress_bar("TAC") as report:
        tac = trigger_activated_change(
            view,
            record,
            norm=cast(Any, request.tac_norm),
            max_images=request.max_images,
            device=pick_device(request.device),
            progress=report,
        )
    found = correlate(scores, tac, layers=layers)
    with inputs_kept(path):
        write_correlation(folder, scores, tac, mask, found)
    if as_json:
        emit_json({"layers": [layer.to_json() for layer in found.layers], "pooled": found.pooled.to_json()})
    else:
        show_correlation(found)
        say(f"wrote tac.csv, correlation.csv, uclc_tac.png and uclc_tac.pdf to {folder}")


def write_correlation(folder: Path, scores: Scores, tac: dict[str, Floats], mask: Mask, found: Correlation) -> None:
    """``tac.csv`` (a row a channel), ``correlation.csv`` (a row a layer) and figure 3."""
    from clp_plugin.reports.figures import save_figure, uclc_tac_figure
    from clp_plugin.reports.tables import to_csv

    pruned = mask.indices()
    rows = [
        {"layer": name, "channel": k, "sigma": sigma, "tac": tac[name][k], "pruned": k in pruned.get(name, [])}
        for name, values in scores.sigma.items()
        for k, sigma in enumerate(values)
    ]
    titles = {entry.name: (entry.pearson, entry.spearman) for entry in found.layers}
    with filled_folder(folder):
        to_csv(rows, folder / "tac.csv")
        to_csv([entry.to_json() for entry in (*found.layers, found.pooled)], folder / "correlation.csv")
        save_figure(uclc_tac_figure(scores, tac, mask, titles), folder / "uclc_tac")


def sweep_record(request: SweepRequest, *, as_json: bool) -> None:
    """Sweep, write CSV and figure, print."""
    values = parse_range(USUAL_SWEEP if request.u == "auto" else request.u)
    device = pick_device(request.device)
    catalogue = load_catalogue(request.registry)
    path = locate_record(request.record, toolbox=request.toolbox, root=request.root, catalogue=catalogue)
    clear_dead_runs(path)
    record = open_record(
        path, toolbox=request.toolbox, trust=request.trust, data=request.data, catalogue=catalogue
    )  # fmt: skip
    rule = "parity" if request.parity else f"{request.score}-{request.norm}"
    folder = request.out or path / ANALYSIS / f"sweep-{rule}"
    folder_to_fill(folder)  # told before the work
    view = fuse(record.model, record.input_shape, pairing="registration" if request.parity else "dataflow")
    scores = score(view, score=request.score, norm=request.norm)
    layers = parse_layers(request.layers)
    note_layers(view, layers, scores)
    chosen = None
    if request.u == "auto":
        origin = record.provenance
        chosen = choose_threshold(
            view, scores, record.input_shape, mean=origin.mean, std=origin.std, layers=layers, seed=request.seed, device=device
        )  # fmt: skip
        values = sorted({*values, *([chosen.u] if math.isfinite(chosen.u) else [])})
    with progress_bar("sweep") as report:
        rows = sweep(record, scores, values, layers=layers, device=device, progress=report)
    with inputs_kept(path):
        write_sweep(folder, rows, default_u(record, catalogue), chosen=None if chosen is None else chosen.u)
    if as_json:
        told = {} if chosen is None else {"surrogate": chosen.to_json()}
        emit_json({"rows": [row.to_json() for row in rows], **told})
    else:
        show_sweep(rows)
        say(f"wrote sweep.csv, sweep.png and sweep.pdf to {folder}")


def write_sweep(folder: Path, rows: list[SweepRow], u: float | None, *, chosen: float | None = None) -> None:
    """``sweep.csv`` and figure 4.

    Args:
        folder: The folder that takes them.
        rows: The sweep.
        u: The default threshold, to mark.
        chosen: The threshold that was chosen without data, to mark where it is finite.
    """
    from clp_plugin.reports.figures import save_figure, sweep_figure
    from clp_plugin.reports.tables import to_csv

    plain = [row.to_json() for row in rows]
    with filled_folder(folder):
        to_csv(plain, folder / "sweep.csv")
        marked = chosen if chosen is not None and math.isfinite(chosen) else None
        save_figure(sweep_figure(plain, default_u=u, chosen_u=marked), folder / "sweep")
