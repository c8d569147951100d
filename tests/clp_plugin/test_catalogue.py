"""What registry.yaml offers exists, takes the options that it names, and declares the budget that it says."""

from __future__ import annotations

from typing import Any, cast

import pytest

from clp_plugin.adapters.builtin.attacks.catalogue import ATTACKS, create_attack
from clp_plugin.adapters.builtin.settings import PRESETS, AttackSettings
from clp_plugin.adapters.builtin.toolbox import BuiltinBench, attack_settings
from clp_plugin.bench.run import make_defense
from clp_plugin.records.exchange import RunRequest
from clp_plugin.registry import load_catalogue

CATALOGUE = load_catalogue()


def settings_of(method: str, *, own: dict[str, object] | None = None, **given: object) -> AttackSettings:
    """Settings of an attack for which this was given in the words of ``bench attack``, and ``own`` options."""
    options = {**BuiltinBench().attack_options(given), **(own or {})}
    return attack_settings(method, RunRequest(options, catalogue=CATALOGUE))


@pytest.mark.parametrize("scale", ["paper", "small"])
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "tiny_imagenet"])
@pytest.mark.parametrize("method", CATALOGUE.names("defenses"))
def test_every_defense_takes_its_options_at_every_scale(method: str, dataset: str, scale: str) -> None:
    defense, options = make_defense(CATALOGUE, method, dataset, {}, scale=scale)
    assert defense.budget == CATALOGUE.entry("defenses", method).budget
    named = CATALOGUE.defaults("defenses", method, dataset=dataset, scale=scale)
    assert {name: options[name] for name in named} == named
    with pytest.raises(AttributeError):  # frozen: a run cannot change what the outcome says it used
        cast(Any, defense).u = 1.0


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("method", CATALOGUE.names("attacks"))
def test_every_attack_takes_its_options_under_every_preset(method: str, preset: str | None) -> None:
    settings = settings_of(method) if preset is None else settings_of(method, preset=preset)
    attack = create_attack(method, (3, 32, 32), seed=0, options=settings.attack_options)
    assert type(attack) is CATALOGUE.resolve("attacks", method) is ATTACKS[method]
    expected = CATALOGUE.defaults("attacks", method, scale=preset).get("settings", {}).get("poison_rate", 0.1)
    assert settings.poison_rate == expected


def test_what_is_given_wins_over_the_preset_and_the_attack_over_that() -> None:
    settings = settings_of("sig", own={"delta": 20}, preset="small", poison_rate=0.07, target="3")
    assert (settings.poison_rate, settings.attack_options, settings.target) == (0.07, {"delta": 20}, 3)
    assert settings.model_options == PRESETS["small"].model_options
    assert settings_of("sig", preset="small").poison_rate == 0.05
    other = settings_of("sig", preset="small", model="vgg11_bn")
    assert other.model_options == {}
