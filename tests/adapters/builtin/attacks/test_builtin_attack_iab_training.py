"""How the input-aware attack's networks are trained: the mask network before the victim, the generator with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_scenes import RECIPE
from lively_iab import SHAPE, coarse_scene, lively, outputs, slow_diversity, tiny
from numpy.typing import NDArray
from torch import Tensor

from clp_plugin.adapters.builtin.attacks.iab.training import InputAwareHook, mask_loss
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.errors import ConfigError


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def test_the_mask_loss_is_that_of_the_paper(pixels: NDArray[np.uint8]) -> None:
    attack, images = lively(mask_density=0.1, lambda_norm=7.0, lambda_div=3.0), torch.from_numpy(pixels)
    first, second = images[:3], images[3:]
    _, masks = outputs(attack, pixels)
    dense = np.maximum(masks[:3] - 0.1, 0).mean()
    both = torch.from_numpy(masks)
    apart = slow_diversity(*(4 * half.double() / 255 for half in (first, second)), both[:3], both[3:])
    found = mask_loss(attack.mask.eval(), first, second, attack.options)
    assert float(found.detach()) == pytest.approx(7 * dense + 3 * apart, rel=1e-4)


def test_preparing_trains_the_mask_network_alone_towards_few_pixels_and_reports() -> None:
    told: list[tuple[float, int, float, float]] = []
    recipe = replace(RECIPE, batch_size=16, crop_padding=0, flip=False)
    scene = replace(coarse_scene(32, [0, 3], recipe=recipe), progress=lambda *state: told.append(state))
    attack = tiny(mask_epochs=25)
    before = attack.arrays()
    prepared = attack.prepare(scene)
    after = prepared.arrays()
    assert [state[:2] for state in told] == [(epoch + 1.0, 25) for epoch in range(25)]
    assert told[-1][2] < 0.8 * told[0][2]
    assert all(np.array_equal(before[name], array) for name, array in attack.arrays().items())
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith("mask.")}
    _, mask = outputs(prepared, scene.images.pixels)
    assert 0.01 < mask.mean() < 0.3  # half of the pixels before


def test_a_mask_network_that_diverges_is_told() -> None:
    attack = tiny()
    with torch.no_grad():
        next(attack.mask.parameters()).fill_(math.nan)
    with pytest.raises(ConfigError, match="mask network diverged: its loss is nan in epoch 1; lower lambda_norm"):
        attack.prepare(coarse_scene(16, [0]))


def batch_of(scene: Scene) -> Batch:
    return Batch(torch.from_numpy(scene.images.pixels), torch.from_numpy(scene.images.labels))


def call(hook: InputAwareHook, scene: Scene, seed: int = 0) -> Batch:
    return hook(batch_of(scene), torch.arange(len(scene.images)), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("cross_ratio", "count"), [(1.0, 3), (0.4, 1), (0.0, 0)])
def test_poisoned_images_get_their_own_trigger_and_as_many_others_one_of_another_image(
    cross_ratio: float, count: int
) -> None:
    scene, attack = coarse_scene(12, [2, 7, 8]), lively(cross_ratio=cross_ratio)
    hook = attack.hook(scene)
    hook.generator.eval()
    images, before = batch_of(scene).images, scene.images.pixels.copy()
    found = call(hook, scene)
    assert np.array_equal(scene.images.pixels, before)
    assert torch.equal(found.labels, batch_of(scene).labels)
    assert found.images.dtype == torch.float32
    pattern, mask = outputs(attack, before)
    made = found.images.detach().numpy()
    own = before + (255 * pattern - before) * mask
    assert np.abs(made[[2, 7, 8]] - own[[2, 7, 8]]).max() < 1e-2
    crossed = [i for i in range(12) if i not in (2, 7, 8) and not torch.equal(found.images[i], images[i].float())]
    assert len(crossed) == count
    for index in crossed:
        of_others = before[index] + (255 * pattern - before[index]) * mask
        apart = np.abs(of_others - made[index]).max(axis=(1, 2, 3))
        assert apart.argmin() != index
        assert apart.min() < 1e-2


def test_cross_triggers_are_drawn_anew_from_the_generator_of_the_training() -> None:
    scene = coarse_scene(12, [2, 7, 8])
    hook = lively().hook(scene)
    hook.generator.eval()
    first, again, other = (call(hook, scene, seed).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("lambda_div", "cross_ratio"), [(1.0, 1.0), (2.5, 1.0), (1.0, 0.0)])
def test_the_penalty_is_the_diversity_of_patterns_times_its_weight(lambda_div: float, cross_ratio: float) -> None:
    scene, attack = coarse_scene(12, [2, 7, 8]), lively(lambda_div=lambda_div, cross_ratio=cross_ratio)
    hook = attack.hook(scene)
    hook.generator.eval()
    seen: list[Tensor] = []
    hook.generator.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0], output)))
    penalty = call(hook, scene).penalty
    makers, patterns = seen[0] * 0.25 + 0.5, seen[1]
    assert len(makers) == 6
    exact = slow_diversity(makers[:3], makers[3:], patterns[:3], patterns[3:])
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(lambda_div * exact, rel=1e-4)


def test_a_batch_without_poisoned_images_stays_as_it_is() -> None:
    scene = coarse_scene(6, [])
    hook = lively().hook(scene)
    found = call(hook, scene)
    assert found.penalty is None
    assert torch.equal(found.images, batch_of(scene).images)
    hook.step(0.0)


@pytest.mark.parametrize("poisoned", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_a_batch_with_hardly_any_others_is_poisoned_all_the_same(poisoned: list[int]) -> None:
    scene, attack = coarse_scene(6, poisoned), lively()
    found = call(attack.hook(scene), scene)
    assert (found.penalty is None) == (len(poisoned) == 6)
    assert (found.images != batch_of(scene).images).flatten(1).any(1).all()


def test_the_loss_reaches_the_generator_and_a_step_clears_its_gradient_and_leaves_the_mask_alone() -> None:
    scene, attack = coarse_scene(12, [2, 7, 8]), lively()
    hook = attack.hook(scene)
    before = attack.arrays()
    call(hook, scene).images.mean().backward()
    gradients = [parameter.grad for parameter in hook.generator.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    hook.step(0.0)
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in hook.generator.parameters())
    after = attack.arrays()
    assert not np.array_equal(before["generator.layers.0.weight"], after["generator.layers.0.weight"])
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("mask."))


def test_the_learning_rate_falls_along_a_half_cosine() -> None:
    hook = tiny().hook(coarse_scene(6, [1]))
    rates = []
    for done in (0, 1 / 3, 1 / 2, 2 / 3):
        hook.step(done)
        rates.append(hook.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
