"""Training: what it computes, that it repeats, and that it survives a kill."""

from __future__ import annotations

import copy
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_scenes import RECIPE, network
from interruptions import fork, needs_fork, wait
from processes import alive
from stopped_training import StopAfter, StoppedError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.adapters.builtin.settings import PRESETS, AttackSettings
from clp_plugin.adapters.builtin.training.hooks import Batch, BatchHook
from clp_plugin.adapters.builtin.training.recipe import RECIPES, Recipe
from clp_plugin.adapters.builtin.training.run import learning_rate
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import ArrayImages, augment, normalize
from clp_plugin.networks import precision


@pytest.fixture
def images() -> ArrayImages:
    rng = np.random.default_rng(0)
    labels = np.arange(27) % 3
    pixels = rng.integers(0, 100, (27, 3, 8, 8), dtype=np.uint8)
    pixels[np.arange(27), labels] += 100  # the class is the brightest channel
    return ArrayImages(pixels, labels.astype(np.int64), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_without_augmentation_it_is_plain_sgd_with_momentum(images: ArrayImages) -> None:
    recipe = Recipe(epochs=4, lr=0.05, momentum=0.8, weight_decay=0.01, batch_size=27, precision="float32")
    model = network()
    oracle = copy.deepcopy(model).train()
    train(model, images, recipe, seed=0)
    velocity = [torch.zeros_like(parameter) for parameter in oracle.parameters()]
    inputs, labels = normalize(images.pixels, images.mean, images.std), torch.from_numpy(images.labels)
    for epoch in range(4):
        rate = 0.05 * 0.5 * (1 + np.cos(np.pi * epoch / 4))
        oracle.zero_grad()
        F.cross_entropy(oracle(inputs), labels).backward()
        with torch.no_grad():
            for parameter, speed in zip(oracle.parameters(), velocity, strict=True):
                assert parameter.grad is not None
                speed.mul_(0.8).add_(parameter.grad + 0.01 * parameter)
                parameter.sub_(rate * speed)
    for ours, theirs in zip(model.state_dict().values(), oracle.state_dict().values(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-5)


def test_it_learns_what_can_be_learned(images: ArrayImages) -> None:
    model = network()
    train(model, images, replace(RECIPE, epochs=12), seed=0)
    with torch.inference_mode():
        found = model(normalize(images.pixels, images.mean, images.std)).argmax(1).numpy()
    assert (found == images.labels).mean() > 0.9


def test_the_model_ends_on_the_cpu_in_eval_mode_in_float32(images: ArrayImages) -> None:
    model = network()
    train(model, images, replace(RECIPE, epochs=1, precision="bfloat16"), seed=0)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
def test_the_same_seed_twice_gives_the_same_weights_and_another_seed_others(
    images: ArrayImages, number_format: precision.Precision
) -> None:
    recipe = replace(RECIPE, precision=number_format)
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(time.monotonic_ns())  # the global generator must not matter
        train(model, images, recipe, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_the_global_generators_are_left_alone(images: ArrayImages) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    model = network()
    torch.manual_seed(3)
    np.random.seed(3)
    train(model, images, RECIPE, seed=0)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
@pytest.mark.parametrize("batches", [1, 3, 4, 8])  # inside an epoch and between two: an epoch has 3
def test_a_resumed_run_ends_bit_identical(
    images: ArrayImages, tmp_path: Path, batches: int, number_format: precision.Precision
) -> None:
    recipe = replace(RECIPE, precision=number_format)
    whole, resumed = network(), network()
    train(whole, images, recipe, seed=0)
    state = tmp_path / "state.pt"
    kill = StopAfter(batches)
    with pytest.raises(StoppedError):
        train(resumed, images, recipe, seed=0, checkpoint=state, checkpoint_seconds=0, hook=kill)
    resumed = network()
    count = StopAfter(10**6)
    train(resumed, images, recipe, seed=0, checkpoint=state, hook=count)
    assert 10**6 - count.left == 9 - batches  # it went on, it did not begin again
    assert same(whole, resumed)


def test_a_finished_state_is_kept_for_the_caller_and_not_trained_again(images: ArrayImages, tmp_path: Path) -> None:
    first, again = network(), network()
    train(first, images, RECIPE, seed=0, checkpoint=tmp_path / "state.pt")
    train(again, images, RECIPE, seed=0, checkpoint=tmp_path / "state.pt", hook=StopAfter(0))
    assert same(first, again)


@pytest.mark.parametrize(
    ("recipe", "seed", "named"),
    [(replace(RECIPE, lr=0.01), 0, "recipe"), (RECIPE, 1, "seed")],
)
def test_a_state_of_another_run_is_refused(
    images: ArrayImages, tmp_path: Path, recipe: Recipe, seed: int, named: str
) -> None:
    train(network(), images, RECIPE, seed=0, checkpoint=tmp_path / "state.pt")
    with pytest.raises(RecordError, match=f"training with other {named}; delete"):
        train(network(), images, recipe, seed=seed, checkpoint=tmp_path / "state.pt")


def test_a_state_of_other_images_is_refused(images: ArrayImages, tmp_path: Path) -> None:
    train(network(), images, RECIPE, seed=0, checkpoint=tmp_path / "state.pt")
    others = replace(images, labels=(images.labels + 1) % 3)
    with pytest.raises(RecordError, match="other data"):
        train(network(), others, RECIPE, seed=0, checkpoint=tmp_path / "state.pt")


def test_a_damaged_state_is_told(images: ArrayImages, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(RecordError, match=r"state\.pt: not a readable training state .*delete"):
        train(network(), images, RECIPE, seed=0, checkpoint=tmp_path / "state.pt")


def test_progress_counts_up_to_the_end(images: ArrayImages) -> None:
    told: list[tuple[float, int, float, float]] = []
    train(network(), images, RECIPE, seed=0, progress=lambda *state: told.append(state))
    epochs = [epoch for epoch, *_ in told]
    assert epochs == sorted(epochs)
    assert {1.0, 2.0, 3.0} <= set(epochs)
    assert all(total == 3 and loss > 0 and left >= 0 for _, total, loss, left in told)
    assert told[-1][3] == 0


def test_divergence_is_a_clear_error(images: ArrayImages) -> None:
    with pytest.raises(ConfigError, match=r"training diverged.*lower the learning rate"):
        train(network(), images, replace(RECIPE, lr=1e18, epochs=8), seed=0)


def test_a_batch_hook_sees_raw_pixels_and_their_positions(images: ArrayImages) -> None:
    seen: list[int] = []

    class Hook(BatchHook):
        def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
            assert torch.equal(batch.images, torch.from_numpy(images.pixels)[indices])
            seen.extend(indices.tolist())
            return batch

    train(network(), images, replace(RECIPE, epochs=1, crop_padding=0, flip=False), seed=0, hook=Hook())
    assert len(seen) == len(set(seen)) == 24  # whole batches only


class _Negative(BatchHook):
    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        return replace(batch, images=255 - batch.images)


def test_a_batch_hook_changes_what_is_learned(images: ArrayImages) -> None:
    plain, hooked = network(), network()
    train(plain, images, RECIPE, seed=0)
    train(hooked, images, RECIPE, seed=0, hook=_Negative())
    assert not same(plain, hooked)


def test_augmentation_makes_every_shift_and_flip_and_nothing_else() -> None:
    image = torch.arange(1, 28, dtype=torch.uint8).view(1, 3, 3, 3)
    batch = image.expand(2000, -1, -1, -1)
    found = augment(batch, torch.Generator().manual_seed(0), padding=1, flip=True)
    expected = set()
    for mirrored in (image, image.flip(3)):
        padded = F.pad(mirrored, (1, 1, 1, 1))
        expected |= {
            padded[0, :, top : top + 3, left : left + 3].numpy().tobytes() for top in range(3) for left in range(3)
        }
    assert {one.numpy().tobytes() for one in found} == expected
    assert found.dtype == torch.uint8


def test_no_augmentation_returns_the_images() -> None:
    batch = torch.rand(4, 3, 5, 5)
    assert torch.equal(augment(batch, torch.Generator(), padding=0, flip=False), batch)


def test_the_schedule_is_the_cosine_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for epoch in range(10):
        assert learning_rate(Recipe(epochs=10, lr=0.3), epoch) == pytest.approx(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()


def test_warmup_rises_to_the_full_rate() -> None:
    recipe = Recipe(epochs=10, lr=0.4, warmup_epochs=2)
    assert [learning_rate(recipe, epoch) for epoch in (0.5, 1, 2)] == pytest.approx([0.1, 0.2, 0.4])
    assert 0 < learning_rate(recipe, 0) < 0.01


@pytest.mark.parametrize(
    ("text", "computes"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_automatic_precision_asks_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, computes: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    found = precision.resolve("auto", torch.device("cpu"))
    assert found == (torch.bfloat16 if computes else torch.float32)


def test_automatic_precision_is_float32_where_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "absent")
    assert precision.resolve("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs at least 1, found 0"),
        ({"lr": 0.0}, "lr above 0"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"batch_size": 1}, "batch_size at least 2"),
        ({"warmup_epochs": 3}, r"warmup_epochs in \[0, 3\)"),
        ({"precision": "float16"}, "auto, float32 or bfloat16, found 'float16'"),
    ],
)
def test_impossible_recipes_are_told(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(RECIPE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poison_rate": -0.1}, "poison rate: expected a share from 0"),
        ({"poison_rate": 1.0}, "found 1.0"),
        ({"poison_rate": 10}, "found 10"),
        ({"seed": -1}, "seed"),
        ({"train_share": 0.995}, "at most 1 together"),
    ],
)
def test_impossible_settings_are_told(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PRESETS["demo"], **change)  # type: ignore[arg-type]


def test_the_paper_recipe_is_that_of_section_5_1() -> None:
    recipe, preset = RECIPES["clp-paper"], PRESETS["clp-paper"]
    assert (recipe.lr, recipe.momentum, recipe.batch_size, recipe.epochs) == (0.1, 0.9, 128, 150)
    assert isinstance(preset, AttackSettings)
    assert (preset.train_share, preset.benign_share, preset.poison_rate) == (0.95, 0.01, 0.1)


class _Slow(BatchHook):
    def step(self, done: float) -> None:
        time.sleep(0.02)


@needs_fork
def test_a_process_killed_at_any_moment_loses_nothing(images: ArrayImages, tmp_path: Path) -> None:
    state, recipe = tmp_path / "state.pt", replace(RECIPE, epochs=30)  # 90 batches

    def trained(**how: Any) -> nn.Module:
        model = network()
        train(model, images, recipe, seed=0, **how)
        return model

    victim = fork(lambda: trained(checkpoint=state, checkpoint_seconds=0.05, hook=_Slow()))
    while not state.exists() and alive(victim):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(victim, signal.SIGKILL)
    assert wait(victim) == -signal.SIGKILL
    count = StopAfter(10**6)
    resumed = trained(checkpoint=state, hook=count)
    assert 0 < 10**6 - count.left < 90
    assert same(resumed, trained())
