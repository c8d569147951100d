"""What every attack must do, tested over all of them; what is one attack's own has a file of its own."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_scenes import RECIPE, network, scene_of
from numpy.typing import NDArray
from small_attack import LEARNT, QUICK, stored
from stopped_training import StopAfter, StoppedError
from torch import nn

from clp_plugin.adapters.builtin.attacks.base import Attack, pattern_from_json
from clp_plugin.adapters.builtin.attacks.catalogue import ATTACKS, create_attack
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.errors import ConfigError, RecordError

SHAPE = (3, 8, 16)
NAMES = sorted(QUICK)
TAKING_PART = ["iab", "wanet"]  # in the victim's training

Prepared = Callable[[str], Attack]

every_attack = pytest.mark.parametrize("name", NAMES)


def made(name: str, *, seed: int = 0) -> Attack:
    return create_attack(name, SHAPE, seed=seed, options=QUICK[name])


def scene(*, seed: int = 0) -> Scene:
    return scene_of(32, [0, 3, 9, 15], shape=SHAPE, block=4, seed=seed)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """``prepared(name)``: the attack made ready for the images of ``scene()``."""
    return cache(lambda name: made(name).prepare(scene()))


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


def test_no_attack_is_left_out() -> None:
    assert set(ATTACKS) == set(QUICK)


@every_attack
def test_poisoning_leaves_the_originals_alone(name: str, prepared: Prepared, pixels: NDArray[np.uint8]) -> None:
    before = pixels.copy()
    poisoned = prepared(name).poison(pixels)
    assert np.array_equal(pixels, before)
    assert (poisoned.dtype, poisoned.shape) == (np.uint8, pixels.shape)
    assert not np.array_equal(poisoned, pixels)
    assert prepared(name).poison(pixels[:0]).shape == (0, *SHAPE)


@every_attack
def test_read_back_from_json_and_arrays_it_poisons_alike(
    name: str, prepared: Prepared, pixels: NDArray[np.uint8]
) -> None:
    attack = prepared(name)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    again = ATTACKS[name].from_json(json.loads(json.dumps(attack.to_json())), attack.arrays())
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(attack.poison(pixels), again.poison(pixels))
    assert stored(again) == stored(attack)


# SIG's wave has nothing random.
@pytest.mark.parametrize("name", sorted({*NAMES} - {"sig"}))
def test_the_seed_decides_the_trigger_and_the_global_generator_stays(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (stored(made(name, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert first == again
    assert first != other


@every_attack
def test_preparing_makes_another_attack_as_the_scene_s_seed_says(
    name: str, prepared: Prepared, pixels: NDArray[np.uint8]
) -> None:
    attack = made(name)
    before = stored(attack)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ready = attack.prepare(scene())
    assert torch.equal(torch.rand(1), expected)
    assert stored(attack) == before
    assert stored(ready) == stored(prepared(name))
    assert np.array_equal(ready.perturb(pixels), prepared(name).perturb(pixels))
    other = attack.prepare(scene(seed=1))
    assert (stored(ready) != before) == (stored(ready) != stored(other)) == (name in LEARNT)


KNOWN = {
    "badnets": "corner, inset, pattern, size",
    "blended": "alpha",
    "cla": "clean_epochs, eps, size, step, steps",
    "iab": "cross_ratio, lambda_div, lambda_norm, mask_density, mask_epochs, width",
    "sig": "delta, frequency",
    "ssba": "batch_size, bits, epochs, image_weight, lr, noise, width",
    "trojan": "clean_epochs, inset, neurons, size, steps",
    "wanet": "cross_ratio, grid_size, noise, strength",
}


@every_attack
def test_an_unknown_option_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option of attack '{name}' 'gamma'; known: {KNOWN[name]}"):
        create_attack(name, SHAPE, seed=0, options={"gamma": 1})


def test_an_unknown_attack_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=f"unknown attack 'badnet'; known: {', '.join(NAMES)}"):
        create_attack("badnet", SHAPE, seed=0, options={})


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), 3), ((3, 64, 64), 5), ((3, 64, 63), 3), ((1, 224, 224), 5)])
@pytest.mark.parametrize("name", ["badnets", "cla", "trojan"])
def test_the_usual_size_of_a_patch_follows_the_image(name: str, shape: tuple[int, int, int], size: int) -> None:
    patch = pattern_from_json(create_attack(name, shape, seed=0, options={}).to_json()["patch"])
    assert patch.shape == (shape[0], size, size)


@pytest.mark.parametrize("name", ["blended", "iab", "ssba", "wanet"])
def test_images_of_another_size_are_refused(name: str, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match=r"\b8, 16\).*\(3, 8, 8\)|\(8, 16\).*\(8, 8\)"):
        made(name).poison(pixels[..., :8])


@every_attack
def test_json_that_lacks_a_value_is_told(name: str) -> None:
    attack = made(name)
    good = attack.to_json()
    for key in good:
        for damaged in ({**good, key: None}, {other: good[other] for other in good if other != key}):
            with pytest.raises(RecordError, match="trigger"):
                ATTACKS[name].from_json(damaged, attack.arrays())


@pytest.mark.parametrize("pattern", [{"shape": [3, 3, 3], "base64": "AA=="}, {"shape": [4], "base64": "AAAAAA=="}])
@pytest.mark.parametrize("name", ["badnets", "blended", "cla", "trojan"])
def test_a_pattern_that_is_none_is_told(name: str, pattern: dict[str, Any]) -> None:
    good = made(name).to_json()
    (key,) = {"patch", "pattern"} & set(good)
    with pytest.raises(RecordError, match="trigger"):
        ATTACKS[name].from_json({**good, key: pattern}, {})


@pytest.mark.parametrize("name", ["iab", "ssba", "wanet"])
def test_damaged_arrays_are_told(name: str) -> None:
    attack = made(name)
    arrays = attack.arrays()
    for key in list(arrays)[:3]:
        good = arrays[key]
        others = {other: arrays[other] for other in arrays if other != key}
        damaged = [
            others,
            *({**others, key: bad} for bad in (good[..., :1], good[0], good.astype(float), good * np.nan)),
        ]
        for found in damaged:
            with pytest.raises(RecordError, match=re.escape(key)):
                ATTACKS[name].from_json(attack.to_json(), found)


@pytest.mark.parametrize("batches", [1, 4])  # inside the first epoch and in the second: an epoch has 4
@pytest.mark.parametrize("name", TAKING_PART)
def test_a_training_it_takes_part_in_ends_bit_identical_when_resumed(
    name: str, prepared: Prepared, tmp_path: Path, batches: int
) -> None:
    images, state = scene().images, tmp_path / "state.pt"
    whole, killed, resumed, plain = (network() for _ in range(4))
    undisturbed, first, second = (copy.deepcopy(prepared(name)) for _ in range(3))
    train(whole, images, RECIPE, seed=0, hook=undisturbed.hook(scene()))
    stop = StopAfter(batches, first.hook(scene()))
    with pytest.raises(StoppedError):
        train(killed, images, RECIPE, seed=0, checkpoint=state, checkpoint_seconds=0, hook=stop)
    train(resumed, images, RECIPE, seed=0, checkpoint=state, hook=second.hook(scene()))
    train(plain, images, RECIPE, seed=0)
    assert same(whole, resumed)
    assert not same(whole, plain)
    assert stored(second) == stored(undisturbed)
    assert (stored(second) != stored(prepared(name))) == (name in LEARNT)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
