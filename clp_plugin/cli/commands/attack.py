"""``bench attack``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from clp_plugin.adapters.builtin.attack import attacked, is_finished
from clp_plugin.adapters.builtin.settings import PRESETS, AttackSettings
from clp_plugin.adapters.builtin.training.recipe import RECIPES
from clp_plugin.cli.console import emit_json, percent, progress_bar, say
from clp_plugin.cli.option_values import parse_options
from clp_plugin.cli.requests import AttackRequest
from clp_plugin.cli.showing import show_metrics
from clp_plugin.errors import ConfigError, unknown_name
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.opening import open_record
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.types import Metrics

_TOOK = 0.9  # ASR below which a record is not what its name says


def run_attack_command(request: AttackRequest, *, as_json: bool) -> None:
    """Train, store, evaluate, print."""
    catalogue = load_catalogue(request.registry)
    attack_type = cast(Any, catalogue.resolve("attacks", request.method))
    settings = attack_settings(request, catalogue)
    start = time.perf_counter()
    with _trained(
        settings, request.out, request.device, attack_type=attack_type, label="training", force=request.force
    ):
        seconds = time.perf_counter() - start
        record = open_record(request.out, toolbox="builtin")
        metrics = evaluate(record.model, record, device=pick_device(request.device))
        note_if_it_did_not_take(
            metrics, "train longer, poison more, or keep the trigger in its place with --fixed-trigger"
        )
        if as_json:
            emit_json({"record": str(request.out), "seconds": seconds, **metrics.to_json()})
        else:
            show_metrics(f"attacked model in {request.out}", {request.method: metrics})


def note_if_it_did_not_take(metrics: Metrics, remedy: str) -> None:
    """A record whose ASR is low is not what its name says."""
    if metrics.asr < _TOOK:
        say(
            f"note: the attack did not take: ASR {percent(metrics.asr)}, where clean images give "
            f"{percent(metrics.base_rate)}; {remedy}"
        )


def train_record(
    settings: AttackSettings, out: Path, device: str, *, attack_type: Any = None, label: str = "training"
) -> None:
    """Run an attack with a progress bar of that label, unless its record is there already."""
    with _trained(settings, out, device, attack_type=attack_type, label=label, reuse=True):
        pass


@contextlib.contextmanager
def _trained(
    settings: AttackSettings,
    out: Path,
    device: str,
    *,
    attack_type: Any,
    label: str,
    force: bool = False,
    reuse: bool = False,
) -> Iterator[None]:
    start, there = time.perf_counter(), not force and is_finished(settings, out)
    with contextlib.ExitStack() as opened:
        with progress_bar(label) as report:

            def progress(epoch: float, epochs: int, loss: float, seconds_left: float) -> None:
                report(int(100 * epoch), 100 * epochs)

            run = attacked(
                settings,
                out,
                device=pick_device(device),
                force=force,
                progress=progress,
                attack_type=attack_type,
                reuse=reuse,
            )
            opened.enter_context(run)
        took = f"after {time.perf_counter() - start:.0f} s"
        say(f"using the attacked model in {out}" if there else f"stored the attacked model in {out} {took}")
        yield


def attack_settings(request: AttackRequest, catalogue: Catalogue) -> AttackSettings:
    """The preset's settings with what was given instead; without a preset the paper's recipe on the built-in images.

    Raises:
        ConfigError: If the preset or the recipe is unknown, or a setting is impossible.
        RegistryError: If the attack is unknown.
    """
    usual = catalogue.defaults("attacks", request.method, dataset=request.dataset, scale=request.preset)
    own_settings, own_recipe = usual.pop("settings", {}), usual.pop("recipe", {})
    plain = AttackSettings(request.method, "digits", "resnet18", RECIPES["clp-paper"])
    if request.preset is not None and request.preset not in PRESETS:
        raise ConfigError(unknown_name("preset", request.preset, PRESETS))
    base = plain if request.preset is None else PRESETS[request.preset]
    if request.recipe is not None and request.recipe not in RECIPES:
        raise ConfigError(unknown_name("recipe", request.recipe, RECIPES))
    recipe = base.recipe if request.recipe is None else RECIPES[request.recipe]
    same_model = request.model in (None, base.model)
    given: dict[str, Any] = {
        "dataset": request.dataset,
        "model": request.model,
        "data_path": None if request.data is None else str(request.data),
        "n_train": request.n_train,
        "n_test": request.n_test,
        "image_size": request.image_size,
        "model_options": None if request.width is None else {**base.model_options, "width": request.width},
        "poison_rate": request.poison_rate,
        "trigger_after_augmentation": request.fixed_trigger or None,
    }
    if not same_model and request.width is None:
        given["model_options"] = {}  # the preset's width and blocks are of its own network
    return replace(
        base,
        method=request.method,
        recipe=replace(recipe, **{**own_recipe, **request.training}),
        attack_options={**usual, **parse_options(request.option)},
        seed=request.seed,
        target=base.target if request.target is None else _target(request.target),
        **{**own_settings, **{name: value for name, value in given.items() if value is not None}},
    )


def _target(text: str) -> int | None:
    if text in ("all", "all-to-all"):
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--target: expected a class number or `all` (all-to-all), found {text!r}") from None
