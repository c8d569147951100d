"""``bench defend``: one method on one record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from clp_plugin.bench.run import DefenseRun, make_defense, run_defense, save_defense
from clp_plugin.cli.commands.attack import show_metrics
from clp_plugin.cli.console import command_line, emit_json, progress_bar, say
from clp_plugin.defenses.clp import CLP
from clp_plugin.errors import ConfigError
from clp_plugin.evidence.sweep import SweepRow, parse_range, sweep
from clp_plugin.files.checkpoints import staged_folder
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.published import published_rule_note
from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.adapter import ReadsRecords, WritesResults
from clp_plugin.records.opening import find_adapter, locate_record
from clp_plugin.registry import load_catalogue
from clp_plugin.scoring.lipschitz import score
from clp_plugin.store.outcomes import load_outcome
from clp_plugin.types import ChoiceProtocol, Mask, Record, Scores

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class DefendRequest:
    """The options of ``bench defend``, as typed."""

    record: Path
    method: str = "clp"
    options: Mapping[str, Any] = field(default_factory=dict)
    toolbox: str | None = None
    root: Path | None = None
    sweep: str | None = None
    n_budget: int | None = None
    protocol: ChoiceProtocol = "defender"
    scale: str = "paper"
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    force: bool = False
    trust: bool = False
    registry: Path | None = None


def defend_record(request: DefendRequest, *, as_json: bool) -> None:
    """Run, store, print."""
    catalogue = load_catalogue(request.registry)
    path = locate_record(request.record, toolbox=request.toolbox, root=request.root, catalogue=catalogue)
    adapter = find_adapter(path, toolbox=request.toolbox, catalogue=catalogue)
    record = adapter.open(path, trust=request.trust)
    dataset = record.provenance.dataset
    defense, options = make_defense(catalogue, request.method, dataset, request.options, scale=request.scale)
    if request.scale != "paper":
        usual = make_defense(catalogue, request.method, dataset, request.options)[1]
        say(f"scale {request.scale}: {changed_options(options, usual) or 'changes nothing for ' + request.method}")
    folder = request.out or _default_folder(adapter, path, request, defense, options)
    again = require_replaceable(folder, request, options)
    with progress_bar(request.method) as report:
        run = run_defense(
            record,
            request.method,
            defense,
            options,
            seed=request.seed,
            device=pick_device(request.device),
            command=command_line(),
            progress=report,
            n_budget=request.n_budget,
            protocol=request.protocol,
        )
    view = fuse(record.model, record.input_shape) if isinstance(defense, CLP) else None
    if view is not None:
        run = run.with_log(published_rule=published_rule_note(record.model, view))
    with staged_folder(folder) as place:
        save_defense(run, place)
        if isinstance(adapter, WritesResults):
            _export(adapter, place, folder.name, record, run, defense, view, request)
        names = sorted(written.name for written in place.iterdir())
        if again:
            _carry_over(folder, place)
    if as_json:
        emit_json(defense_json(run, folder))
    else:
        show_defense(record, run)
        say(f"wrote {', '.join(names)} to {folder}")


def require_replaceable(folder: Path, request: DefendRequest, options: Mapping[str, Any]) -> bool:
    """A result is replaced by the same run again, or with ``--force``; a folder that holds anything else never is.

    Returns:
        Whether the same run stands there.

    Raises:
        ConfigError: If the folder must stay.
    """
    if folder.is_file():
        raise ConfigError(f"--out: {folder} is a file; expected a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / OUTCOME).is_file():
        raise ConfigError(f"{folder} holds files that `bench defend` did not write; choose another folder with --out")
    earlier = load_outcome(folder / OUTCOME)
    same = (
        (earlier.method, earlier.seed, earlier.protocol) == (request.method, request.seed, request.protocol)
        and earlier.has_options(options)
        and request.n_budget in (None, _images_seen(earlier.budget))
    )  # fmt: skip
    if not same and not request.force:
        given = ", ".join(f"{key}={value}" for key, value in earlier.options.items())
        raise ConfigError(
            f"{folder} holds the result of {earlier.method} with {given}, seed {earlier.seed}; "
            "give --force to replace it, or another folder with --out"
        )
    return same


def _carry_over(earlier: Path, place: Path) -> None:
    """What others made of the same result, such as the figures that a toolbox puts beside it, stays."""
    for item in earlier.iterdir():
        if not (place / item.name).exists():
            (shutil.copytree if item.is_dir() else shutil.copy2)(item, place / item.name)


def _default_folder(
    adapter: ReadsRecords, path: Path, request: DefendRequest, defense: object, options: Mapping[str, Any]
) -> Path:
    if isinstance(adapter, WritesResults):
        return adapter.result_folder(path, request.method, options)
    return (
        path
        / "defense"
        / request.method
        / slug(defense, options, seed=request.seed, protocol=request.protocol, n_budget=request.n_budget)
    )


def _export(
    adapter: WritesResults,
    place: Path,
    name: str,
    record: Record,
    run: DefenseRun,
    defense: object,
    view: FusedView | None,
    request: DefendRequest,
) -> None:
    """Beside our own files those of the toolbox, and for CLP its sweep over u and two figures."""
    final: dict[str, Any] = {"acc": run.after.acc, "asr": run.after.asr, "ra": run.after.ra}
    rows: list[SweepRow] = []
    if isinstance(defense, CLP) and view is not None and request.sweep is not None:
        if defense.pairing != view.pairing:
            view = fuse(record.model, record.input_shape, pairing=defense.pairing)
        scores = score(view, score=defense.score, norm=defense.norm)
        with progress_bar("sweep") as report:
            values = [*parse_range(request.sweep), defense.u]
            *rows, last = sweep(record, scores, values, device=pick_device(request.device), progress=report)
        final = asdict(last)
        _draw(place, scores, cast(Mask, run.repaired.mask), rows, defense.u)
    adapter.export(
        place, name, record=record, model=run.repaired.model, final=final, sweep=[asdict(row) for row in rows]
    )


def _draw(place: Path, scores: Scores, mask: Mask, rows: Sequence[SweepRow], u: float) -> None:
    from clp_plugin.reports.figures import channel_scores_figure, save_figure, sweep_figure

    save_figure(channel_scores_figure(scores, mask, u), place / "scores")
    save_figure(sweep_figure([row.to_json() for row in rows], default_u=u), place / "sweep")


def defense_json(run: DefenseRun, folder: Path) -> dict[str, Any]:
    """What ``bench defend --json`` prints."""
    return {
        "method": run.outcome.method,
        "implementation": run.outcome.implementation,
        "options": run.outcome.options,
        "before": run.before.to_json(),
        "after": run.after.to_json(),
        "der": run.outcome.der,
        "pruned": run.outcome.pruned,
        "seconds": run.outcome.seconds,
        "budget": run.outcome.budget,
        "protocol": run.outcome.protocol,
        "mask": None if run.repaired.mask is None else str(folder / "mask.json"),
        "weights": str(folder / "weights.safetensors"),
        "outcome": str(folder / OUTCOME),
    }


def show_defense(record: Record, run: DefenseRun) -> None:
    """Before and after, and what was pruned."""
    after = f"after {run.outcome.method}" + " (oracle)" * (run.outcome.protocol == "oracle")
    pruned = {"before": 0, after: run.outcome.pruned if run.outcome.pruned is not None else "-"}
    show_metrics(
        f"{record.provenance.attack} on {record.provenance.dataset}, {record.provenance.architecture}",
        {"before": run.before, after: run.after},
        pruned,
    )
    if run.repaired.mask is not None and len(run.repaired.mask):
        say(f"pruned {run.repaired.mask!r}")
    if note := run.outcome.log.get("published_rule"):
        say(str(note))
    say(f"DER {run.outcome.der:.3f}, {run.outcome.seconds:.2f} s, budget: {run.outcome.budget}")


def slug(
    defense: object,
    options: Mapping[str, Any],
    *,
    seed: int,
    protocol: ChoiceProtocol = "defender",
    n_budget: int | None = None,
) -> str:
    """A folder name that tells runs apart by what is not usual about them: ``default-seed0``, ``u2.5-oracle-seed1``."""
    usual = {each.name: each.default for each in fields(defense)} if is_dataclass(defense) else {}
    parts = [_short(name, value) for name, value in options.items() if name not in usual or usual[name] != value]
    parts += [f"n{n_budget}"] * (n_budget is not None) + ["oracle"] * (protocol == "oracle")
    return "-".join([*(parts or ["default"]), f"seed{seed}"]).replace("/", "_")


def _short(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return f"{name}={value}"
    return f"{name}{value:g}" if isinstance(value, (int, float)) else value


def changed_options(options: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """``"epochs 20 -> 5, lr 0.005 -> 0.01"``; empty if nothing differs."""
    different = {name: value for name, value in options.items() if usual.get(name) != value}
    return ", ".join(f"{name} {usual.get(name)} -> {value}" for name, value in different.items())


def _images_seen(budget: str) -> int | None:
    count = budget.partition(":")[2]
    return int(count) if count else None
