"""Data-free holistic backdoor erasing: what comes back, what it says, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fake_records import MEAN, STD, fake_record
from tiny_dhbe import BUDGET, QUICK, compute_in, game_of, same, state, tiny
from torch import Tensor, nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.dhbe.defense import DHBE
from clp_plugin.defenses.dhbe.game import Game
from clp_plugin.errors import ConfigError


class NoImages:
    """A budget that fails when an image set is so much as looked at."""

    input_shape, num_classes, mean, std, judge = (3, 12, 12), 5, MEAN, STD, None

    @property
    def benign(self) -> None:
        raise AssertionError("the benign images were read")

    @property
    def poisoned(self) -> None:
        raise AssertionError("the poisoned images were read")


def test_no_image_is_touched() -> None:
    repaired = DHBE(**QUICK, iterations=1).repair(tiny(), NoImages())  # type: ignore[arg-type]
    assert repaired.mask is None
    assert not same(state(repaired.model), state(tiny()))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_student_comes_close_to_the_teacher_and_patches_move_it_less(seed: int) -> None:
    # Generators that hardly move: otherwise they may win for a while.
    options: dict[str, Any] = {
        "batch_size": 16,
        "latent": 8,
        "width": 4,
        "patch": 4,
        "lr": 0.02,
        "lambda_d": 1.0,
        "generator_lr": 1e-5,
    }
    log = DHBE(**options, iterations=12, student_steps=3).repair(tiny(seed), BUDGET, seed=seed).log
    assert log["losses"]["student"][-1] < 0.8 * log["losses"]["student"][0]
    assert log["response"]["after"] < 0.8 * log["response"]["before"]


def test_in_bfloat16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = DHBE(**QUICK, iterations=1).repair(tiny(), BUDGET)
    compute_in(torch.bfloat16, monkeypatch)
    rounded = DHBE(**QUICK, iterations=1).repair(tiny(), BUDGET)
    assert not same(state(exact.model), state(rounded.model))
    for name, tensor in state(exact.model).items():
        assert state(rounded.model)[name].dtype == tensor.dtype
        assert torch.allclose(state(rounded.model)[name].float(), tensor.float(), rtol=0.1, atol=0.1), name


def test_without_iterations_the_model_is_its_own_teacher() -> None:
    model = tiny()
    repaired = DHBE(**QUICK, iterations=0).repair(model, BUDGET)
    assert repaired.model is model
    assert same(state(model), state(tiny()))
    assert repaired.log["agreement"] == 1
    assert repaired.log["response"]["before"] == repaired.log["response"]["after"] > 0
    assert repaired.log["losses"] == {"student": [], "generator": [], "patches": []}


def test_the_model_comes_back_ready_to_use() -> None:
    model = tiny()
    repaired = DHBE(**QUICK, iterations=2).repair(model, BUDGET)
    assert repaired.model is model
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and p.is_contiguous() and p.dtype == torch.float32 for p in model.parameters())
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_the_log_is_short_and_progress_is_told() -> None:
    steps: list[tuple[int, int]] = []
    log = DHBE(**QUICK, iterations=11, student_steps=1).repair(tiny(), BUDGET, progress=lambda *s: steps.append(s)).log
    assert steps == [(done, 11) for done in range(1, 12)]
    assert set(log) == {"losses", "agreement", "response"}
    assert {len(values) for values in log["losses"].values()} == {10}
    assert 0 <= log["agreement"] <= 1


def test_learning_rates_fall_to_a_tenth_at_60_and_at_80_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def play(game: Game) -> Tensor:
        optimizers = (game._of_student, game._of_generator, game._of_patcher)
        seen.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        return torch.zeros(3)

    monkeypatch.setattr(Game, "play", play)
    DHBE(**QUICK, iterations=15, lr=0.5, generator_lr=0.02).repair(tiny(), BUDGET)
    factors = [1.0] * 9 + [0.1] * 3 + [0.01] * 3
    for found, factor in zip(seen, factors, strict=True):
        assert found == pytest.approx([0.5 * factor, 0.02 * factor, 0.02 * factor])


def test_same_seed_twice_is_the_same_and_the_callers_generator_is_not_touched() -> None:
    models = [tiny() for _ in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        DHBE(**QUICK, iterations=2).repair(model, BUDGET, seed=seed)
        for model, seed in zip(models, (3, 3, 4), strict=True)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert same(state(first.model), state(again.model))
    assert first.log == again.log
    assert not same(state(first.model), state(other.model))


def test_the_seed_decides_first_weights_noise_and_places() -> None:
    first, other = game_of(DHBE(**QUICK), seed=0), game_of(DHBE(**QUICK), seed=1)
    for name in ("generator", "patcher"):
        assert not same(state(getattr(first, name)), state(getattr(other, name)))
        getattr(other, name).load_state_dict(state(getattr(first, name)))
    assert not torch.equal(first.images(), other.images())
    images = torch.zeros(8, 3, 12, 12)
    assert not torch.equal(first.patched(images), other.patched(images))


def test_agreement_and_response_are_those_of_a_slow_loop() -> None:
    game = game_of(DHBE(**QUICK))
    student: Any = game.finish()
    teacher = game.teacher
    with torch.no_grad():
        # On about half of the images the second class becomes the first; then all logits are halved.
        logits = teacher(game.images())
        second, first = logits.mean(0).argsort()[-2:]
        student.linear.bias[second] += (logits[:, first] - logits[:, second]).median()
        student.linear.weight *= 0.5
        student.linear.bias *= 0.5
    before = game._random.get_state()
    found = game.judge()
    game._random.set_state(before)
    alike, moved = 0, {"before": 0.0, "after": 0.0}
    with torch.no_grad():
        for _ in range(4):
            images = game.images()
            patched = game.patched(images)
            for n in range(8):
                image, under = images[n : n + 1], patched[n : n + 1]
                alike += int(student(image).argmax()) == int(teacher(image).argmax())
                moved["before"] += float((teacher(under) - teacher(image)).abs().sum()) / 5 / 32
                moved["after"] += float((student(under) - student(image)).abs().sum()) / 5 / 32
    assert found["agreement"] == pytest.approx(alike / 32)
    assert 0 < alike < 32
    assert found["response"] == pytest.approx(moved, rel=1e-4)
    assert moved["after"] == pytest.approx(moved["before"] / 2, rel=1e-4)


@pytest.mark.parametrize(("name", "width"), [("preactresnet18", 2), ("vgg11_bn", 4)])
def test_other_architectures_and_sizes(name: str, width: int) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=5, width=width).eval()
    options = DHBE(iterations=1, student_steps=1, batch_size=4, latent=8, width=4)
    repaired = options.repair(model, Budget((3, 32, 32), 5, MEAN, STD))
    assert all(t.isfinite().all() for t in repaired.model.state_dict().values())


def test_a_grey_image_and_a_network_without_batchnorm_are_fine() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    before = state(model)
    repaired = DHBE(**QUICK, iterations=1).repair(model, Budget((1, 9, 9), 5, (0.5,), (0.25,)))
    assert not same(before, state(repaired.model))


def test_the_runner_gives_it_no_images() -> None:
    defense = DHBE(**QUICK, iterations=2)
    outcome = run_defense(plan_defense(fake_record(), "dhbe", defense, {})).outcome
    assert (outcome.budget, outcome.mask) == ("none", None)
    with pytest.raises(ConfigError, match="dhbe sees no images; leave out --n-budget"):
        run_defense(plan_defense(fake_record(), "dhbe", defense, {}, n_budget=5))
    with pytest.raises(ConfigError, match="dhbe chooses no parameter"):
        run_defense(plan_defense(fake_record(), "dhbe", defense, {}, protocol="oracle"))


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_training_that_diverges_ends_with_an_error(lr: float) -> None:
    steps: list[tuple[int, int]] = []
    with pytest.raises(ConfigError, match=r"diverged: its loss is (nan|inf); lower lr"):
        DHBE(**QUICK, iterations=40, lr=lr).repair(tiny(), BUDGET, progress=lambda *step: steps.append(step))
    assert len(steps) < 20


@pytest.mark.parametrize(
    ("shape", "std", "message"),
    [
        ((3, 12, 2), STD, "patches of 3x3 pixels do not fit images of 12x2"),
        ((3, 12, 12), (1.0,), "images have 3 channels, but std has 1 values"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: Any, std: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DHBE(**QUICK).repair(tiny(), Budget(shape, 5, MEAN, std))


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": -1}, {"iterations": 1.5}, {"student_steps": 0}, {"batch_size": 1}, {"batch_size": True},
        {"lr": 0}, {"lr": math.nan}, {"generator_lr": -1}, {"momentum": 1}, {"weight_decay": -1}, {"latent": 0},
        {"width": 0}, {"patch": 0}, {"patch": 2.5}, {"lambda_d": -0.1}, {"tv_weight": math.inf},
    ],
)  # fmt: skip
def test_impossible_options_are_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"dhbe: expected {next(iter(options))}"):
        DHBE(**options)


def test_defaults_are_the_published_ones() -> None:
    dhbe = DHBE()
    assert (dhbe.iterations, dhbe.student_steps, dhbe.batch_size, dhbe.lr) == (300 * 50, 5, 256, 0.1)
    assert (dhbe.latent, dhbe.width, dhbe.patch, dhbe.lambda_d, dhbe.tv_weight) == (256, 64, 5, 0.1, 1e-4)
    assert (dhbe.momentum, dhbe.weight_decay, dhbe.generator_lr, dhbe.budget) == (0.9, 5e-4, 1e-3, "none")
    assert not hasattr(dhbe, "chooses")
