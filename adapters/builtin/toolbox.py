"""The built-in bench as a toolbox: its records read, its attacks run, in the words of ``bench attack``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from clp_plugin.errors import ConfigError, RecordError, unknown_name
from clp_plugin.records.adapter import ChecksAttacks, RunsAttacks
from clp_plugin.records.exchange import RunRequest

from .attack import attacked, is_finished
from .attacks.base import Attack
from .evasions.catalogue import parse_evasions
from .record import BuiltinAdapter
from .record_files import read_description
from .settings import PRESETS, AttackSettings
from .training.recipe import RECIPES

# Words of `bench attack` that are a field of the settings or of the training recipe.
_SETTINGS = {
    "dataset": "dataset", "model": "model", "n_train": "n_train", "n_test": "n_test", "image_size": "image_size",
    "poison_rate": "poison_rate", "fixed_trigger": "trigger_after_augmentation",
}  # fmt: skip
_TRAINING = ("epochs", "batch_size", "lr", "weight_decay")
_KNOWN_OPTIONS = (*_SETTINGS, *_TRAINING, "preset", "recipe", "data", "width", "target", "evade")


class BuiltinBench(BuiltinAdapter, RunsAttacks, ChecksAttacks):
    """Reads and makes records of the built-in bench; its attacks are those of the catalogue."""

    def attack_options(self, given: Mapping[str, object]) -> dict[str, object]:
        """Put all that was given below ``settings``: an attack has options of its own by the same names."""
        for name in given:
            if name not in _KNOWN_OPTIONS:
                raise ConfigError(f"builtin: {unknown_name('setting of an attack', name, _KNOWN_OPTIONS)}")
        return {"settings": dict(given)}

    def check_attack(self, name: str, method: str, request: RunRequest) -> None:
        settings, out = attack_settings(method, request), Path(name)
        with contextlib.suppress(RecordError):  # no record yet, or an unfinished one
            if read_description(out) and not is_finished(settings, out):
                raise ConfigError(
                    f"{out} holds a record of other settings than {_named(request)}; give another folder with --out"
                )

    @contextlib.contextmanager
    def attacked(self, name: str, method: str, request: RunRequest) -> Iterator[Path]:
        """Train an attacked model and store it in the folder ``name``; see :func:`.attack.attacked`."""
        attack_type = None if request.catalogue is None else request.catalogue.resolve("attacks", method)
        settings, out = attack_settings(method, request), Path(name)

        def progress(epoch: float, epochs: int, loss: float, seconds_left: float) -> None:
            if request.progress is not None:
                request.progress(int(100 * epoch), 100 * epochs)

        start, there = time.perf_counter(), not request.force and is_finished(settings, out)
        with attacked(
            settings,
            out,
            device=request.device,
            force=request.force,
            progress=progress,
            attack_type=cast("type[Attack] | None", attack_type),
            reuse=request.reuse,
        ):
            duration = f"after {time.perf_counter() - start:.0f} s"
            request.report(
                f"using the attacked model in {out}" if there else f"stored the attacked model in {out} {duration}"
            )
            yield out


def attack_settings(method: str, request: RunRequest) -> AttackSettings:
    """The preset's settings with what was given instead; without a preset the paper's recipe on the built-in images.

    Args:
        method: Name of the attack in the catalogue.
        request: How to run; its options are those of :meth:`BuiltinBench.attack_options` and of the attack itself.

    Raises:
        ConfigError: If the preset or the recipe is unknown, or a setting is impossible.
        RegistryError: If the attack is unknown.
    """
    own = dict(request.options)
    given = cast("dict[str, Any]", own.pop("settings", {}))
    preset, recipe = given.get("preset"), given.get("recipe")
    usual: dict[str, Any] = {}
    if request.catalogue is not None:
        usual = request.catalogue.defaults("attacks", method, dataset=given.get("dataset"), scale=preset)
    own_settings, own_recipe = usual.pop("settings", {}), usual.pop("recipe", {})
    if preset is not None and preset not in PRESETS:
        raise ConfigError(unknown_name("preset", preset, PRESETS))
    if recipe is not None and recipe not in RECIPES:
        raise ConfigError(unknown_name("recipe", recipe, RECIPES))
    base = AttackSettings(method, "digits", "resnet18", RECIPES["clp-paper"]) if preset is None else PRESETS[preset]
    changes = {field: given[word] for word, field in _SETTINGS.items() if word in given}
    if "data" in given:
        changes["data_path"] = str(given["data"])
    training = {word: given[word] for word in _TRAINING if word in given}
    return replace(
        base,
        method=method,
        recipe=replace(base.recipe if recipe is None else RECIPES[recipe], **{**own_recipe, **training}),
        attack_options={**usual, **own},
        evasions=parse_evasions(given.get("evade", ())),
        seed=request.seed,
        target=_target(given["target"]) if "target" in given else base.target,
        **{**own_settings, **changes, **_network(base, given)},
    )


def _network(base: AttackSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the network, where they are not the preset's: its width and blocks are of its own network."""
    kept = base.model_options if given.get("model") in (None, base.model) else {}
    return {"model_options": {**kept, "width": given["width"]} if "width" in given else kept}


def _named(request: RunRequest) -> str:
    given = cast("dict[str, Any]", request.options.get("settings", {}))
    return f"preset {given['preset']!r}" if "preset" in given else "those that were given"


def _target(text: str) -> int | None:
    if text in ("all", "all-to-all"):
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--target: expected a class number or `all` (all-to-all), found {text!r}") from None
