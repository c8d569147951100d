"""The optimised patch of Trojan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_attack import small_attack
from torch import nn

from clp_plugin.adapters.builtin.attack import initial_model
from clp_plugin.adapters.builtin.attacks import trojan as trojan_module
from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.trojan import Trojan, classifier_head, head_inputs, strongest_units
from clp_plugin.adapters.builtin.digits import compose
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import ArrayImages, normalize
from clp_plugin.types import TargetRule

SHAPE = (3, 16, 16)
MEAN, STD = (0.5, 0.4, 0.6), (0.25, 0.3, 0.2)
SETTINGS = small_attack("trojan", attack_options={"steps": 3, "inset": 1})


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trojan_module, "_BATCH", 16)
        yield


def small_digits(count: int, split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Every other pixel of the built-in images: a quarter of the work."""
    pixels, labels = compose(count, split, seed=0)
    return np.ascontiguousarray(pixels[:, :, ::2, ::2]), labels


def scene_of(new_model: Callable[[], nn.Module], seed: int = 0) -> Scene:
    pixels, labels = small_digits(96, "train")
    images = ArrayImages(pixels, labels, MEAN, STD)
    return Scene(images, np.arange(5), TargetRule("all_to_one", 10, 0), new_model, SETTINGS.recipe, seed)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of(lambda: initial_model(SETTINGS, 10))


@pytest.fixture(scope="module")
def initial() -> Trojan:
    return Trojan.create(SHAPE, seed=0, inset=2, steps=30)


@pytest.fixture(scope="module")
def prepared(initial: Trojan, scene: Scene) -> Trojan:
    return initial.prepare(scene)


def test_the_units_are_those_with_the_largest_sums_of_absolute_weights() -> None:
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -3.0, 0.5, 2.0], [1.0, 3.0, 0.5, -1.5]]))
    assert strongest_units(head, 3) == (1, 3, 0)  # the sums are 2, 6, 1, 3.5


def test_the_units_of_a_prepared_attack_are_those_of_its_clean_network(prepared: Trojan, scene: Scene) -> None:
    sums = np.abs(scene.clean_model().linear.weight.detach().numpy().astype(np.float64)).sum(axis=0)
    assert prepared.units == tuple(np.argsort(-sums)[:2].tolist())


def test_the_head_is_the_last_linear_layer_and_its_inputs_are_seen() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    images = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    head = classifier_head(model)
    assert head is model[3]
    assert torch.equal(head_inputs(model, head, images), model[:3](images))
    assert not head._forward_pre_hooks


def test_the_optimised_patch_excites_the_units_on_held_out_images(
    initial: Trojan, prepared: Trojan, scene: Scene
) -> None:
    held_out, _ = small_digits(50, "test")
    model = scene.clean_model()
    features: list[torch.Tensor] = []
    model.linear.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    with torch.no_grad():
        for attack in (initial, prepared):
            model(normalize(attack.poison(held_out), MEAN, STD))
    before, after = (float(found[:, list(prepared.units)].mean()) for found in features)
    assert after > 1.05 * before > 0


def test_only_the_pixels_of_the_patch_change(prepared: Trojan) -> None:
    pixels, _ = small_digits(4, "test")
    original, poisoned = pixels.copy(), prepared.poison(pixels)
    assert np.array_equal(pixels, original)
    assert poisoned.dtype == np.uint8
    assert (poisoned[:, :, 11:14, 11:14] == prepared.patch).all()
    poisoned[:, :, 11:14, 11:14] = pixels[:, :, 11:14, 11:14]
    assert np.array_equal(poisoned, pixels)


def test_preparing_makes_another_attack_and_leaves_the_first(initial: Trojan, prepared: Trojan) -> None:
    assert np.array_equal(initial.patch, Trojan.create(SHAPE, seed=0).patch)
    assert initial.units == ()
    assert not np.array_equal(prepared.patch, initial.patch)
    assert (prepared.patch.dtype, prepared.patch.shape) == (np.uint8, (3, 3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 17}, "trojan: a patch of size 17 with inset 0 does not fit into 16x16 images; give a size from 1 to"),
        ({"size": 0}, "size 0"),
        ({"size": 14, "inset": 3}, "give a size from 1 to 13"),
        ({"inset": -1}, "inset -1"),
        ({"size": "3"}, "wrong type"),
        ({"neurons": 0}, "trojan: expected neurons of at least 1, found 0"),
        ({"steps": 2.5}, r"expected steps of at least 1, found 2.5; give a whole number"),
        ({"clean_epochs": 0}, "expected clean_epochs of at least 1"),
    ],
)
def test_impossible_options_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("trojan", SHAPE, seed=0, options=options, attack_type=Trojan)


def test_more_neurons_than_the_head_has_inputs_are_told(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="asks for 5 neurons, but the classifier has 4 inputs"):
        Trojan.create(SHAPE, seed=0, neurons=5).prepare(scene)


def test_a_network_without_a_linear_classifier_is_told() -> None:
    def all_convolutional() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(ConfigError, match="expected a network with a linear classifier"):
        Trojan.create(SHAPE, seed=0, clean_epochs=1).prepare(scene_of(all_convolutional))


@pytest.mark.parametrize(
    "damage",
    [
        {"inset": -1},
        {"units": ["1"]},
    ],
)
def test_damaged_json_is_told(damage: dict[str, object]) -> None:
    with pytest.raises(RecordError, match="trigger"):
        Trojan.from_json({**Trojan.create(SHAPE, seed=0).to_json(), **damage}, {})
