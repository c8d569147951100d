"""The input-aware attack: both networks, their training, and what a record keeps of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from small_attack import run_attack, small_attack
from torch import Tensor, nn

from clp_plugin.adapters.builtin.attacks.catalogue import create_attack
from clp_plugin.adapters.builtin.attacks.iab.attack import IAB
from clp_plugin.adapters.builtin.attacks.iab.nets import UShaped, diversity, scaled, sharp_mask
from clp_plugin.adapters.builtin.attacks.iab.training import IABOptions, InputAwareHook, mask_loss
from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.record_files import read_description, read_trigger
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import ArrayImages
from clp_plugin.types import TargetRule

SHAPE = (3, 8, 16)
RECIPE = Recipe(epochs=3, lr=0.05, batch_size=8, crop_padding=2, flip=True, precision="float32")
SETTINGS = small_attack("iab", crop_padding=1, attack_options={"width": 2, "mask_epochs": 1})


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build("resnet18", num_classes=3, width=4, blocks=(1, 1))


def scene_of(count: int, poisoned: list[int], *, seed: int = 0, recipe: Recipe = RECIPE) -> Scene:
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 3).astype(np.int64)
    coarse = rng.integers(0, 256, (count, 3, 2, 4), dtype=np.uint8)
    images = ArrayImages(coarse.repeat(4, axis=2).repeat(4, axis=3), labels, (0.5,) * 3, (0.25,) * 3)
    chosen = np.array(poisoned, dtype=np.int64)
    return Scene(images, chosen, TargetRule("all_to_one", 3, 0), network, recipe, seed)


def tiny(*, seed: int = 0, **options: Any) -> IAB:
    return IAB.create(SHAPE, seed=seed, **{"width": 2, "mask_epochs": 2, **options})


def lively(*, seed: int = 0, **options: Any) -> IAB:
    """As ``tiny``, with the statistics of images in its norms: masks and patterns then differ from pixel to pixel."""
    attack = tiny(seed=seed, **options)
    images = scaled(torch.from_numpy(scene_of(32, []).images.pixels))
    for net in (attack.generator, attack.mask):
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            net.train()(images)
        for norm in norms:
            norm.momentum = 0.05
        net.eval()
    return attack


def outputs(attack: IAB, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Patterns in [0, 1] and masks of the networks in eval mode, the formulas of the paper written out."""
    inputs = (torch.from_numpy(images).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = [net.eval().layers(inputs).double().numpy() for net in (attack.generator, attack.mask)]
    pattern, mask = (np.tanh(logit) / 2 + 0.5 for logit in logits)
    return pattern, np.tanh(20 * mask - 10) / 2 + 0.5


def test_poisoning_puts_the_pattern_where_the_mask_is(pixels: NDArray[np.uint8]) -> None:
    attack = lively()
    pattern, mask = outputs(attack, pixels)
    assert mask.min() < 0.01
    assert mask.max() > 0.99
    exact = pixels + (255 * pattern - pixels) * mask
    poisoned = attack.poison(pixels)
    assert np.abs(poisoned - exact).max() <= 0.5 + 1e-2
    outside = np.broadcast_to(mask < 1e-3, pixels.shape)
    assert np.array_equal(poisoned[outside], pixels[outside])
    assert not np.array_equal(poisoned, pixels)


def test_each_image_has_a_trigger_of_its_own(pixels: NDArray[np.uint8]) -> None:
    pattern, mask = outputs(lively(), pixels)
    assert np.abs(pattern[0] - pattern[1]).max() > 0.1
    assert np.abs(mask[0] - mask[1]).max() > 0.5


def test_originals_are_left_alone_and_the_networks_too(pixels: NDArray[np.uint8]) -> None:
    attack, before = lively(), pixels.copy()
    attack.generator.train()
    arrays = attack.arrays()
    first = attack.poison(pixels)
    assert np.array_equal(pixels, before)
    assert np.array_equal(attack.poison(pixels), first)
    assert attack.generator.training
    assert all(np.array_equal(array, arrays[name]) for name, array in attack.arrays().items())
    assert attack.poison(pixels[:0]).shape == (0, *SHAPE)


def test_long_sets_are_worked_through_in_parts(pixels: NDArray[np.uint8]) -> None:
    attack = lively()
    found = attack.poison(np.concatenate([pixels] * 50)).astype(int)
    assert np.abs(found - np.concatenate([attack.poison(pixels)] * 50)).max() <= 1


def test_the_seed_decides_both_networks_and_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (tiny(seed=seed).arrays() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    weights = [name for name in first if first[name].ndim == 4]
    assert weights
    assert not any(np.array_equal(first[name], other[name]) for name in weights)
    assert not np.array_equal(first["generator.layers.0.weight"], first["mask.layers.0.weight"])


def test_the_networks_are_three_halvings_and_three_doublings() -> None:
    made = UShaped(3, 1, 4)
    kinds = [type(layer).__name__ for layer in made.layers]
    assert (kinds.count("MaxPool2d"), kinds.count("Upsample"), kinds.count("Conv2d")) == (3, 3, 13)
    assert kinds[-1] == "BatchNorm2d"
    widths = [layer.out_channels for layer in made.layers if isinstance(layer, nn.Conv2d)]
    assert widths == [4, 4, 8, 8, 16, 16, 16, 16, 8, 8, 4, 4, 1]
    with torch.no_grad():
        assert made.eval()(torch.zeros(2, 3, 16, 24)).shape == (2, 1, 16, 24)


def slow_diversity(images: Tensor, others: Tensor, made: Tensor, made_of_others: Tensor) -> float:
    made, made_of_others = made.detach(), made_of_others.detach()
    ratios = []
    for index in range(len(images)):
        apart = math.sqrt(float(((images[index] - others[index]).double() ** 2).mean()))
        made_apart = math.sqrt(float(((made[index] - made_of_others[index]).double() ** 2).mean()))
        ratios.append(apart / (made_apart + 1e-7))
    return sum(ratios) / len(ratios)


def test_the_mask_loss_is_that_of_the_paper(pixels: NDArray[np.uint8]) -> None:
    attack, images = lively(mask_density=0.1, lambda_norm=7.0, lambda_div=3.0), torch.from_numpy(pixels)
    first, second = images[:3], images[3:]
    _, masks = outputs(attack, pixels)
    dense = np.maximum(masks[:3] - 0.1, 0).mean()
    both = torch.from_numpy(masks)
    apart = slow_diversity(*(4 * half.double() / 255 for half in (first, second)), both[:3], both[3:])
    found = mask_loss(attack.mask.eval(), first, second, attack.options)
    assert float(found.detach()) == pytest.approx(7 * dense + 3 * apart, rel=1e-4)


def test_the_gradient_of_diversity_is_finite_where_outputs_agree() -> None:
    made = torch.zeros(2, 1, 4, 4, requires_grad=True)
    diversity(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), made, made.detach()).backward()
    assert made.grad is not None
    assert torch.isfinite(made.grad).all()


def test_preparing_trains_the_mask_network_alone_towards_few_pixels_and_reports() -> None:
    told: list[tuple[float, int, float, float]] = []
    recipe = replace(RECIPE, batch_size=16, crop_padding=0, flip=False)
    scene = replace(scene_of(32, [0, 3], recipe=recipe), progress=lambda *state: told.append(state))
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


def test_preparing_twice_gives_the_same_mask_network_and_another_seed_another() -> None:
    first, again, other = (tiny().prepare(scene_of(16, [0], seed=seed)).arrays() for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["mask.layers.0.weight"], other["mask.layers.0.weight"])


def test_a_mask_network_that_diverges_is_told() -> None:
    attack = tiny()
    with torch.no_grad():
        next(attack.mask.parameters()).fill_(math.nan)
    with pytest.raises(ConfigError, match="mask network diverged: its loss is nan in epoch 1; lower lambda_norm"):
        attack.prepare(scene_of(16, [0]))


def batch_of(scene: Scene) -> Batch:
    return Batch(torch.from_numpy(scene.images.pixels), torch.from_numpy(scene.images.labels))


def call(hook: InputAwareHook, scene: Scene, seed: int = 0) -> Batch:
    return hook(batch_of(scene), torch.arange(len(scene.images)), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("cross_ratio", "count"), [(1.0, 3), (0.4, 1), (0.0, 0)])
def test_poisoned_images_get_their_own_trigger_and_as_many_others_one_of_another_image(
    cross_ratio: float, count: int
) -> None:
    scene, attack = scene_of(12, [2, 7, 8]), lively(cross_ratio=cross_ratio)
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
    scene = scene_of(12, [2, 7, 8])
    hook = lively().hook(scene)
    hook.generator.eval()
    first, again, other = (call(hook, scene, seed).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("lambda_div", "cross_ratio"), [(1.0, 1.0), (2.5, 1.0), (1.0, 0.0)])
def test_the_penalty_is_the_diversity_of_patterns_times_its_weight(lambda_div: float, cross_ratio: float) -> None:
    scene, attack = scene_of(12, [2, 7, 8]), lively(lambda_div=lambda_div, cross_ratio=cross_ratio)
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
    scene = scene_of(6, [])
    hook = lively().hook(scene)
    found = call(hook, scene)
    assert found.penalty is None
    assert torch.equal(found.images, batch_of(scene).images)
    hook.step(0.0)


@pytest.mark.parametrize("poisoned", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_a_batch_with_hardly_any_others_is_poisoned_all_the_same(poisoned: list[int]) -> None:
    scene, attack = scene_of(6, poisoned), lively()
    found = call(attack.hook(scene), scene)
    assert (found.penalty is None) == (len(poisoned) == 6)
    assert (found.images != batch_of(scene).images).flatten(1).any(1).all()


def test_the_loss_reaches_the_generator_and_a_step_clears_its_gradient_and_leaves_the_mask_alone() -> None:
    scene, attack = scene_of(12, [2, 7, 8]), lively()
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
    hook = tiny().hook(scene_of(6, [1]))
    rates = []
    for done in (0, 1 / 3, 1 / 2, 2 / 3):
        hook.step(done)
        rates.append(hook.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


class _KilledError(Exception):
    pass


def kill_after(hook: InputAwareHook, batches: int) -> InputAwareHook:
    class Killing(InputAwareHook):
        left = batches

        def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
            self.left -= 1
            if self.left < 0:
                raise _KilledError
            return super().__call__(batch, indices, generator)

    return Killing(hook.generator, hook.mask, hook.options, hook.poisoned, torch.device("cpu"))


@pytest.mark.parametrize("batches", [1, 4])
def test_a_resumed_run_ends_bit_identical_in_the_classifier_and_the_generator(tmp_path: Path, batches: int) -> None:
    scene, state = scene_of(27, [0, 3, 9, 15, 18]), tmp_path / "state.pt"
    models, attacks = [network() for _ in range(3)], [lively() for _ in range(3)]
    train(models[0], scene.images, RECIPE, seed=0, hook=attacks[0].hook(scene))
    killed = kill_after(attacks[1].hook(scene), batches)
    with pytest.raises(_KilledError):
        train(models[1], scene.images, RECIPE, seed=0, checkpoint=state, checkpoint_seconds=0, hook=killed)
    train(models[2], scene.images, RECIPE, seed=0, checkpoint=state, hook=attacks[2].hook(scene))
    ends = [[*models[i].state_dict().values(), *attacks[i].generator.state_dict().values()] for i in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not np.array_equal(
        attacks[0].arrays()["generator.layers.0.weight"], lively().arrays()["mask.layers.0.weight"]
    )
    pixels = scene.images.pixels
    assert np.array_equal(attacks[0].poison(pixels), attacks[2].poison(pixels))
    assert not np.array_equal(attacks[0].poison(pixels), lively().poison(pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "expected width to be a whole number from 1 on, found 0; the paper's is 32"),
        ({"width": 2.5}, "expected width .* found 2.5"),
        ({"width": "8"}, "expected width .* found '8'"),
        ({"mask_epochs": 0}, "expected mask_epochs .* found 0; the paper's is 25"),
        ({"mask_density": 1.0}, "expected mask_density to be a share between 0 and 1, found 1.0"),
        ({"mask_density": "a"}, "wrong type"),
        ({"lambda_norm": -1.0}, "expected lambda_norm .* found -1.0"),
        ({"lambda_div": math.inf}, "expected lambda_div .* found inf"),
        ({"cross_ratio": 1.5}, "expected cross_ratio to be a share from 0 to 1, found 1.5; the paper's is 1.0"),
        (
            {"size": 3},
            "unknown option of attack 'iab' 'size'; known: cross_ratio, lambda_div, lambda_norm, mask_density",
        ),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_attack("iab", SHAPE, seed=0, options=options, attack_type=IAB)


@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 16, 20), (3, 4, 8), (3, 0, 8)])
def test_images_that_cannot_be_halved_three_times_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=f"multiples of 8, found {shape[1]}x{shape[2]}; choose another image size"):
        IAB.create(shape, seed=0, width=2)


def test_images_of_another_size_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match=r"generator is for \(3, 8, 16\), the images are \(3, 8, 8\)"):
        tiny().poison(pixels[..., :8])


def test_the_paper_s_options_are_the_defaults() -> None:
    assert IAB.create((3, 8, 8), seed=0).options == IABOptions(32, 25, 0.032, 100.0, 1.0, 1.0)


def test_read_back_from_json_and_arrays_it_poisons_alike(pixels: NDArray[np.uint8]) -> None:
    attack = lively(seed=5)
    again = IAB.from_json(json.loads(json.dumps(attack.to_json())), attack.arrays())
    assert {array.dtype for array in attack.arrays().values()} == {np.dtype(np.float32)}
    assert np.array_equal(attack.poison(pixels), again.poison(pixels))
    assert again.options == attack.options


def test_damaged_json_and_arrays_are_told() -> None:
    attack = tiny()
    good, arrays = attack.to_json(), attack.arrays()
    for key in good:
        for damaged in ({**good, key: None}, {**good, key: -1}, {name: good[name] for name in good if name != key}):
            with pytest.raises(RecordError, match="iab trigger"):
                IAB.from_json(damaged, arrays)
    for shape in ([3, 8], [3, 8, 12], [0, 8, 16], [3, 8, "16"]):
        with pytest.raises(RecordError, match="iab trigger"):
            IAB.from_json({**good, "input_shape": shape}, arrays)
    name = "mask.layers.1.running_var"
    for bad in (arrays[name][:1], arrays[name].astype(np.float64), np.full_like(arrays[name], np.inf), None):
        changed = {key: value for key, value in {**arrays, name: bad}.items() if value is not None}
        with pytest.raises(RecordError, match=r"expected the array 'mask.layers.1.running_var', finite \(2,\) float32"):
            IAB.from_json(good, changed)


@pytest.mark.parametrize("target", [3, None])  # None: all to all
def test_a_record_opens_and_its_trigger_poisons_again(tmp_path: Path, target: int | None) -> None:
    settings = replace(SETTINGS, target=target)
    record = BuiltinAdapter().open(run_attack(settings, tmp_path / "x", attack_type=IAB))
    assert record.provenance.attack == "iab"
    stored = load_file(tmp_path / "x" / "images.safetensors")
    again = IAB.from_json(read_description(tmp_path / "x").trigger, read_trigger(tmp_path / "x"))
    clean = stored["clean.pixels"][stored["triggered.clean_index"]]
    assert np.array_equal(again.poison(clean), stored["triggered.pixels"])
    assert not np.array_equal(clean, stored["triggered.pixels"])
    untrained = IAB.create((3, 32, 32), seed=1, width=2)
    assert not np.array_equal(
        untrained.arrays()["generator.layers.0.weight"], again.arrays()["generator.layers.0.weight"]
    )


def test_what_the_networks_are_given_is_standardised() -> None:
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-2.0, 2.0]
    with torch.no_grad():
        masks = sharp_mask(lively().mask.eval(), torch.zeros(1, *SHAPE, dtype=torch.uint8))
    assert masks.shape == (1, 1, 8, 16)
