"""Data-free holistic backdoor erasing: its parts against slow loops, a training step against one written by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from fake_records import MEAN, STD, TinyNet, fake_record, shaken
from torch import Tensor, nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.dhbe import nets
from clp_plugin.defenses.dhbe.defense import DHBE
from clp_plugin.defenses.dhbe.game import Game, student_loss
from clp_plugin.errors import ConfigError

BUDGET = Budget((3, 12, 12), 5, MEAN, STD)
QUICK = {"batch_size": 8, "latent": 6, "width": 3, "patch": 3}


class NoImages:
    """A budget that fails when an image set is so much as looked at."""

    input_shape, num_classes, mean, std, judge = (3, 12, 12), 5, MEAN, STD, None

    @property
    def benign(self) -> None:
        raise AssertionError("the benign images were read")

    @property
    def poisoned(self) -> None:
        raise AssertionError("the poisoned images were read")


def compute_in(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shared.training", "dhbe.game"):
        monkeypatch.setattr(f"clp_plugin.defenses.{module}.resolve", lambda *_: dtype)


@pytest.fixture(autouse=True)
def precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    compute_in(torch.float32, monkeypatch)


def tiny(seed: int = 0) -> Any:
    return shaken(TinyNet(), seed)


def game_of(options: DHBE, seed: int = 0, model: nn.Module | None = None) -> Game:
    return Game(options, tiny() if model is None else model, BUDGET, seed)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (2, (8, 8))),
        ((64, 64), (3, (8, 8))),
        ((96, 96), (4, (6, 6))),
        ((224, 224), (5, (7, 7))),
        ((28, 28), (2, (7, 7))),
        ((12, 12), (1, (6, 6))),
        ((8, 8), (0, (8, 8))),
        ((3, 3), (0, (3, 3))),
        ((9, 9), (1, (5, 5))),
        ((33, 33), (3, (5, 5))),
        ((20, 36), (3, (3, 5))),
    ],
)
def test_the_first_map_has_five_to_eight_pixels_a_side(size: tuple[int, int], expected: Any) -> None:
    assert nets.start_of(*size) == expected


def test_every_size_from_five_on_starts_in_five_to_eight_and_gets_large_enough() -> None:
    for side in range(5, 700):
        doublings, (height, width) = nets.start_of(side, side)
        assert 5 <= height == width <= 8
        assert height << doublings >= side
        if side % 2**doublings == 0:
            assert height << doublings == side


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 32, 32), (1, 28, 28), (3, 33, 33), (2, 20, 36), (3, 6, 6)])
def test_generated_images_have_the_right_size_and_are_normalized_over_the_batch(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    images = nets.ImageGenerator(shape, 7, 4)(torch.randn(16, 7))
    assert images.shape == (16, *shape)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(images.var((0, 2, 3), correction=0), torch.ones(shape[0]), atol=5e-3)
    assert not torch.equal(images[0], images[1])


def test_patches_are_of_the_right_size_and_within_one_of_zero() -> None:
    torch.manual_seed(0)
    patches = nets.PatchGenerator(3, 5, 7, 4)(10 * torch.randn(16, 7))
    assert patches.shape == (16, 3, 5, 5)
    assert patches.abs().max() <= 1
    assert patches.std() > 0.3


def test_layers_are_the_published_ones_at_32_pixels() -> None:
    layers = list(nets.ImageGenerator((3, 32, 32), 256, 64).modules())
    convolutions = [(m.in_channels, m.out_channels) for m in layers if isinstance(m, nn.Conv2d)]
    assert convolutions == [(128, 128), (128, 64), (64, 3)]
    assert [m.negative_slope for m in layers if isinstance(m, nn.LeakyReLU)] == [0.2, 0.2]


def test_patched_images_differ_inside_one_window_and_by_patch_over_std_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    images, patches = torch.randn(4, 3, 12, 10, generator=generator), torch.rand(4, 3, 5, 5, generator=generator)
    patched = nets.add_patches(images, patches, 6, 2, torch.tensor(STD))
    for n in range(4):
        for c in range(3):
            for y in range(12):
                for x in range(10):
                    expected = images[n, c, y, x]
                    if 6 <= y < 11 and 2 <= x < 7:
                        expected = expected + patches[n, c, y - 6, x - 2] / torch.tensor(STD)[c]
                    assert patched[n, c, y, x] == expected


def test_a_patch_is_added_to_pixels_unclipped() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels, patches = torch.rand(2, 3, 8, 8, generator=generator).double(), 2 * torch.rand(2, 3, 5, 5).double() - 1
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (MEAN, STD))
    stamped = pixels.clone()
    stamped[:, :, 3:, :5] += patches
    found = nets.add_patches((pixels - mean) / std, patches, 3, 0, std.flatten())
    assert torch.allclose(found, (stamped - mean) / std, atol=1e-12)


def test_one_place_for_the_batch_and_every_place_in_reach() -> None:
    game = game_of(DHBE(**{**QUICK, "patch": 10}))
    places, sizes = set(), set()
    for _ in range(80):
        images = game.images().detach()
        changed = (game.patched(images).detach() != images).any(1)
        rows, columns = torch.nonzero(changed.any(0).any(1)).flatten(), torch.nonzero(changed.any(0).any(0)).flatten()
        places.add((int(rows[0]), int(columns[0])))
        sizes.add((len(rows), len(columns)))
    assert sizes == {(10, 10)}
    assert places == {(y, x) for y in range(3) for x in range(3)}


def slow_total_variation(images: Tensor) -> float:
    count, channels, height, width = images.shape
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for n in range(count):
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        if y + down < height and 0 <= x + right < width:
                            squares += float(images[n, c, y + down, x + right] - images[n, c, y, x]) ** 2
        total += math.sqrt(squares)
    return total


def test_total_variation_is_that_of_a_slow_loop() -> None:
    images = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    assert float(nets.total_variation(images)) == pytest.approx(slow_total_variation(images), rel=1e-12)
    assert float(nets.total_variation(torch.cat([images] * 4))) == pytest.approx(2 * slow_total_variation(images))
    flat = torch.ones(1, 1, 3, 3, requires_grad=True)
    nets.total_variation(flat).backward()
    assert flat.grad is not None
    assert not flat.grad.any()


def batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 8, 3, 12, 12, generator=torch.Generator().manual_seed(4)))


def test_student_steps_equal_steps_written_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss by its formula, then SGD with momentum and weight decay, twice; running statistics move too."""
    options = DHBE(**QUICK, lr=0.05, lambda_d=0.3, weight_decay=0.01)
    game = game_of(options)
    by_hand, teacher = copy.deepcopy(game.student), tiny()
    images, patched = batches(2), batches(4)[2:]
    queues = {"images": iter(images), "patched": iter(patched)}
    monkeypatch.setattr(game, "images", lambda: next(queues["images"]))
    monkeypatch.setattr(game, "patched", lambda _: next(queues["patched"]))
    velocity = {name: torch.zeros_like(p) for name, p in by_hand.named_parameters()}
    for plain, under in zip(images, patched, strict=True):
        found = game._step_student()
        logits = by_hand(plain)
        differences = (logits - teacher(plain)).abs().sum() / 40  # 8 images, 5 classes
        loss = differences + 0.3 * (by_hand(under) - logits.detach()).abs().sum() / 40
        by_hand.zero_grad()
        loss.backward()
        assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
        with torch.no_grad():
            for name, p in by_hand.named_parameters():
                assert p.grad is not None
                velocity[name] = 0.9 * velocity[name] + p.grad + 0.01 * p
                p.sub_(0.05 * velocity[name])
        for name, tensor in by_hand.state_dict().items():
            assert torch.allclose(game.student.state_dict()[name], tensor, atol=1e-5), name


def assert_moved_alike(found: nn.Module, expected: nn.Module) -> None:
    """But for biases in front of a BatchNorm: their gradient is rounding alone, and Adam makes full steps of it."""
    compared = 0
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert other.grad is not None
        firm = other.grad.abs() > 1e-6
        assert torch.allclose(one[firm], other[firm], atol=1e-5)
        compared += int(firm.sum())
    assert compared > 0.5 * sum(p.numel() for p in expected.parameters())


def test_the_image_generator_climbs_the_disagreement_less_the_total_variation(monkeypatch: pytest.MonkeyPatch) -> None:
    options = DHBE(**QUICK, tv_weight=0.01)
    game = game_of(options, model=tiny())
    with torch.no_grad():
        game.student.linear.bias += 1.0  # type: ignore[operator, union-attr]
    student, generator = copy.deepcopy(game.student), copy.deepcopy(game.generator)
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(game, "images", lambda: game.generator(noise))
    found = game._step_generator()
    images = generator(noise)
    loss = 0.01 * nets.total_variation(images) - (student(images) - game.teacher(images)).abs().mean()
    loss.backward()
    torch.optim.Adam(generator.parameters(), lr=1e-3).step()
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_moved_alike(game.generator, generator)


def test_the_patch_generator_climbs_the_change_of_the_students_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    game = game_of(DHBE(**QUICK))
    student, patcher = copy.deepcopy(game.student), copy.deepcopy(game.patcher)
    (images,), noise = batches(1), torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(game, "images", lambda: images)
    std = torch.tensor(STD)
    monkeypatch.setattr(game, "patched", lambda plain: nets.add_patches(plain, game.patcher(noise), 2, 5, std))
    found = game._step_patcher()
    loss = -(student(images) - student(nets.add_patches(images, patcher(noise), 2, 5, std))).abs().mean()
    loss.backward()
    torch.optim.Adam(patcher.parameters(), lr=1e-3).step()
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_moved_alike(game.patcher, patcher)


def test_each_step_moves_one_network_and_the_teacher_never_moves() -> None:
    game = game_of(DHBE(**QUICK))
    networks = {name: getattr(game, name) for name in ("student", "teacher", "generator", "patcher")}
    teacher = state(game.teacher)
    for step, moving in (("_step_student", "student"), ("_step_generator", "generator"), ("_step_patcher", "patcher")):
        before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
        getattr(game, step)()
        moved = {
            name
            for name, network in networks.items()
            if any(not torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True))
        }
        assert moved == {moving}
    game.play()
    assert same(state(game.teacher), teacher)
    assert same(teacher, state(tiny()))
    assert (game.student.training, game.teacher.training) == (True, False)


def test_student_loss_has_no_gradient_through_the_plain_logits_of_its_second_term() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    ones = torch.ones(3, 4)
    loss = student_loss(lambda images: weight * images, ones, 5 * ones, 7 * ones, 0.5)
    loss.backward()
    assert float(loss.detach()) == 5 + 0.5 * 8
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(-1 + 0.5 * 5)


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
