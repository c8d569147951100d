"""Evasions with any attack: how they are asked for, told in records, composed with the attack's own part, and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_scenes import RECIPE, network, scene_of
from small_attack import SMALL_BADNETS, run_attack, small_attack
from stopped_training import StopAfter, StoppedError
from torch import nn

from clp_plugin.adapters.builtin import attack as attack_module
from clp_plugin.adapters.builtin.attack import attacked, is_finished
from clp_plugin.adapters.builtin.attacks.iab.attack import IAB
from clp_plugin.adapters.builtin.evasions.catalogue import create_evasion, parse_evasions
from clp_plugin.adapters.builtin.poisoning import TriggerHook
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.record_files import read_description
from clp_plugin.adapters.builtin.toolbox import BuiltinBench, attack_settings
from clp_plugin.adapters.builtin.training.hooks import BatchHook, HooksInTurn
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.records.exchange import RunRequest

BOTH = parse_evasions(["sigma:bound=2", "search"])


def test_what_is_typed_is_completed_by_the_defaults() -> None:
    request = RunRequest(
        BuiltinBench().attack_options({"preset": "small", "evade": ["search:share=1", "sigma"]}), seed=3
    )
    settings = attack_settings("blended", request)
    assert list(settings.evasions) == ["search", "sigma"]
    assert settings.evasions["search"] == {"share": 1.0, "patches": 2, "steps": 6}
    assert set(settings.evasions["sigma"]) == {"weight", "bound"}


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["clp"], "unknown evasion 'clp'; known: search, sigma"),
        (["sigma:u=3"], "unknown option of evasion 'sigma' 'u'; known: bound, weight"),
        (["sigma:weight=0"], "evasion 'sigma': weight: .*greater than 0, found 0"),
        (["sigma:bound=.nan"], "evasion 'sigma': bound: .*finite number"),
        (["sigma:weight=much"], "evasion 'sigma': weight: .*valid number.*found 'much'"),
        (["search:share=1.5"], "evasion 'search': share: .*less than or equal to 1"),
        (["search:steps=2.5"], "evasion 'search': steps: .*integer"),
        (["search:steps"], "--evade search:steps: expected NAME=VALUE"),
        (["sigma", "sigma:weight=1"], "--evade: 'sigma' is given twice"),
    ],
)
def test_what_is_impossible_is_told(typed: list[str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        parse_evasions(typed)


def test_a_clean_twin_has_nothing_to_hide() -> None:
    with pytest.raises(ConfigError, match="no backdoor to hide"):
        replace(SMALL_BADNETS, evasions=BOTH, poison_rate=0.0)


def test_a_record_says_what_was_hidden_from(tmp_path: Path) -> None:
    settings = replace(SMALL_BADNETS, evasions=BOTH)
    out = run_attack(settings, tmp_path / "x")
    assert BuiltinAdapter().open(out).provenance.attack == "badnets+sigma+search"
    assert read_description(out).settings["evasions"] == BOTH
    assert is_finished(settings, out)
    assert not is_finished(SMALL_BADNETS, out)
    assert not is_finished(replace(SMALL_BADNETS, evasions=parse_evasions(["sigma", "search"])), out)


def test_an_attack_that_hides_nothing_is_stored_and_trained_as_before(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "evasions" not in read_description(made).settings
    hooks: list[BatchHook | None] = []

    def note(*_: object, hook: BatchHook | None, **__: object) -> None:
        hooks.append(hook)

    monkeypatch.setattr(attack_module, "train", note)
    for number, fixed in enumerate((False, True)):
        run_attack(replace(SMALL_BADNETS, trigger_after_augmentation=fixed), tmp_path / str(number))
    assert hooks[0] is None
    assert type(hooks[1]) is TriggerHook


def trained(hook_of: str, **how: Any) -> nn.Module:
    """A network under an attack of its own part and both evasions; ``stop`` after so many batches."""
    scene, model, stop = scene_of(27, [4, 8], recipe=RECIPE), network(), how.pop("stop", 10**6)
    attack = IAB.create((3, 8, 8), seed=0, width=2)
    own = attack.hook(scene) if hook_of == "iab" else TriggerHook(attack, scene.poisoned)
    evasions = [create_evasion(name, options).hook(model, attack, scene) for name, options in BOTH.items()]
    train(model, scene.images, RECIPE, seed=0, hook=StopAfter(stop, HooksInTurn([own, *evasions])), **how)
    return model


@pytest.mark.parametrize("hook_of", ["iab", "stamp"])
@pytest.mark.parametrize("batches", [1, 4])
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, batches: int, hook_of: str) -> None:
    whole, state = trained(hook_of), tmp_path / "state.pt"
    with pytest.raises(StoppedError):
        trained(hook_of, stop=batches, checkpoint=state, checkpoint_seconds=0)
    resumed = trained(hook_of, stop=9 - batches, checkpoint=state)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_an_unfinished_attack_goes_on_with_its_own_evasions_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    monkeypatch.setattr(attack_module, "train", stop)
    hiding = small_attack("badnets", evasions=BOTH)
    with pytest.raises(StoppedError):
        run_attack(hiding, tmp_path / "x")
    with (
        pytest.raises(RecordError, match=r"other settings \(evasions\)"),
        attacked(small_attack("badnets"), tmp_path / "x"),
    ):
        pass
    with pytest.raises(StoppedError):
        run_attack(hiding, tmp_path / "x")
