"""``bench attack``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from clp_plugin.adapters.builtin.attack import run_attack
from clp_plugin.adapters.builtin.recipes import RECIPES, AttackSettings
from clp_plugin.console import emit_json, percent, pick_device, progress_bar, say, show_table
from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.evaluation import evaluate
from clp_plugin.options import parse_options
from clp_plugin.records import open_record
from clp_plugin.registry import load_catalogue
from clp_plugin.types import Metrics

_TOOK = 0.9  # ASR below which a record is not what its name says


@dataclass(frozen=True)
class AttackRequest:
    """The options of ``bench attack``, as typed."""

    out: Path
    method: str
    dataset: str
    data: Path | None
    model: str
    width: int | None
    target: str
    poison_rate: float
    recipe: str
    recipe_changes: Mapping[str, Any]
    n_train: int | None
    n_test: int | None
    fixed_trigger: bool
    seed: int
    device: str
    force: bool = False
    registry: Path | None = None
    attack_options: Sequence[str] = ()


def run_attack_command(request: AttackRequest, *, as_json: bool) -> None:
    """Train, store, evaluate, print."""
    attack_type = cast(Any, load_catalogue(request.registry).resolve("attacks", request.method))
    start = time.perf_counter()
    train_record(_settings(request), request.out, request.device, force=request.force, attack_type=attack_type)
    seconds = time.perf_counter() - start
    record = open_record(request.out, toolbox="builtin")
    metrics = evaluate(record.model, record, device=pick_device(request.device))
    note_if_it_did_not_take(metrics, "train longer, poison more, or keep the trigger in its place with --fixed-trigger")
    if as_json:
        emit_json({"record": str(request.out), "seconds": seconds, **metrics.to_json()})
        return
    show_metrics(f"attacked model in {request.out}", {request.method: metrics})


def note_if_it_did_not_take(metrics: Metrics, remedy: str) -> None:
    """A record whose ASR is low is not what its name says."""
    if metrics.asr < _TOOK:
        say(
            f"note: the attack did not take: ASR {percent(metrics.asr)}, where clean images give "
            f"{percent(metrics.base_rate)}; {remedy}"
        )


def train_record(
    settings: AttackSettings, out: Path, device: str, *, force: bool = False, attack_type: Any = None
) -> None:
    """Run an attack with a progress bar."""
    with progress_bar("training") as report:

        def progress(epoch: float, epochs: int, loss: float, seconds_left: float) -> None:
            report(int(100 * epoch), 100 * epochs)

        run_attack(settings, out, device=pick_device(device), force=force, progress=progress, attack_type=attack_type)
    say(f"stored the attacked model in {out}")


def show_metrics(title: str, rows: Mapping[str, Metrics], extra: Mapping[str, Any] | None = None) -> None:
    """A table in percent: ACC, ASR, RA and the base rate of each model, with one more column if given."""
    columns = ["model", "ACC %", "ASR %", "RA %", "base rate %", *(["pruned"] if extra else [])]
    show_table(
        title,
        columns,
        [
            (
                name, 100 * m.acc, 100 * m.asr, 100 * m.ra, 100 * m.base_rate, *([extra.get(name, "")] if extra else []),
            )
            for name, m in rows.items()
        ],
    )  # fmt: skip


def _settings(request: AttackRequest) -> AttackSettings:
    if request.recipe not in RECIPES:
        raise ConfigError(unknown_name("recipe", request.recipe, RECIPES))
    return AttackSettings(
        method=request.method,
        dataset=request.dataset,
        model=request.model,
        recipe=replace(RECIPES[request.recipe], **request.recipe_changes),
        data_path=None if request.data is None else str(request.data),
        n_train=request.n_train,
        n_test=request.n_test,
        model_options={} if request.width is None else {"width": request.width},
        attack_options=parse_options(request.attack_options),
        target=_target(request.target),
        poison_rate=request.poison_rate,
        trigger_after_augmentation=request.fixed_trigger,
        seed=request.seed,
    )


def _target(text: str) -> int | None:
    if text in ("all", "all-to-all"):
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--target: expected a class number or `all` (all-to-all), found {text!r}") from None
