"""Neural Attention Distillation: the loss and its steps against computations by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import TinyNet, fake_record, random_images, shaken
from slow_attention import slow_attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import mobilenet_v3_small

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.bench.budget import draw_budget
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses import nad
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.nad import NAD, attention_loss
from clp_plugin.defenses.shared import training as _training
from clp_plugin.defenses.shared.stages import Stage
from clp_plugin.defenses.shared.training import loaded, train_with_sgd
from clp_plugin.errors import ConfigError
from clp_plugin.images import ArrayImages


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes=5, width=2, **options).eval()


def tiny() -> Any:
    return shaken(TinyNet())


def budget_of(images: ArrayImages | None, size: int = 12) -> Budget:
    return Budget((3, size, size), 5, benign=images)


def quick(**options: Any) -> NAD:
    """Gentle enough for random networks, and a few steps only."""
    given = {"epochs": 2, "teacher_epochs": 2, "lr": 0.01, "teacher_lr": 0.01, "warm_lr": 0.01, "batch_size": 6}
    return NAD(**{**given, "crop_padding": 0, "flip": False, **options})


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor computes in bfloat16, too, so that a loop by hand can be compared with."""
    monkeypatch.setattr(_training, "resolve", lambda *_: torch.float32)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that NAD trains, in that order: teacher, student."""
    models: list[nn.Module] = []

    def spy(model: nn.Module, *arguments: Any, **options: Any) -> list[float]:
        models.append(model)
        return train_with_sgd(model, *arguments, **options)

    monkeypatch.setattr(nad, "train_with_sgd", spy)
    return models


def test_attention_loss_is_the_weighted_mean_of_squared_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {Stage("a", (4, 4)): 500.0, Stage("b", (2, 3)): 1000.0}
    students = {stage: torch.randn(3, 5, *stage.size, generator=generator) for stage in weights}
    teachers = {stage: torch.randn(3, 7, *stage.size, generator=generator) for stage in weights}
    expected = 0.0
    for stage, weight in weights.items():
        pairs = zip(slow_attention(students[stage]), slow_attention(teachers[stage]), strict=True)
        squares = [(s - t) ** 2 for student, teacher in pairs for s, t in zip(student, teacher, strict=True)]
        expected += weight * sum(squares) / len(squares)
    assert attention_loss(students, teachers, weights).item() == pytest.approx(expected, rel=1e-5)


def tiny_parts(net: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TinyNet written out: what its two stages put out, and the logits."""
    first = torch.relu(net.bn1(net.conv1(images)))
    large = net.bn_sum(first + net.conv2(first))
    little = net.conv3(torch.relu(large))
    return large, little, net.linear(torch.relu(little).mean((2, 3)))


def squares(maps: Tensor) -> Tensor:
    sums = (maps**2).sum(1).flatten(1)
    return sums / (sums**2).sum(1, keepdim=True).sqrt()


def test_one_step_follows_cross_entropy_and_attention(float32: None) -> None:
    """All images in a batch; the teacher is the network itself, but in eval mode."""
    images, model = random_images(12), tiny()
    data, by_hand = loaded(images, model), tiny().train()
    large, little, logits = tiny_parts(by_hand, data.images)
    with torch.no_grad():
        teacher_large, teacher_little, _ = tiny_parts(tiny(), data.images)
    distance = 50 * ((squares(large) - squares(teacher_large)) ** 2).mean()
    distance = distance + 200 * ((squares(little) - squares(teacher_little)) ** 2).mean()
    loss = F.cross_entropy(logits, data.labels) + distance
    loss.backward()
    how = quick(betas=(7, 50, 200), epochs=1, teacher_epochs=0, warm_lr=0.02, weight_decay=0.1, momentum=0.5)
    repaired = NAD(**{**vars(how), "batch_size": 12}).repair(model, budget_of(images))
    assert repaired.log["losses"] == [pytest.approx(loss.item(), rel=1e-4)]
    assert repaired.log["attention_losses"] == [pytest.approx(distance.item(), rel=1e-4)]
    assert distance.item() > 0.1
    for after, before in zip(model.parameters(), by_hand.parameters(), strict=True):
        slope = before.grad + 0.1 * before
        torch.testing.assert_close(after, before - 0.02 * 1.5 * slope, rtol=1e-3, atol=1e-5)  # Nesterov's first step


@pytest.mark.parametrize("betas", [(0.0, 0.0), [0]])
def test_without_attention_it_is_plain_fine_tuning(betas: Any) -> None:
    images, model, plain = random_images(12), tiny(), tiny()
    how = quick(betas=betas, crop_padding=2, flip=True)
    repaired = how.repair(model, budget_of(images), seed=7)
    losses = train_with_sgd(plain, loaded(images, plain), how, seed=7, nesterov=True)
    assert repaired.log["losses"] == losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def eval_distance(student: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        pairs = list(zip(tiny_parts(student, images)[:2], tiny_parts(teacher, images)[:2], strict=True))
    return sum(((squares(s) - squares(t)) ** 2).mean().item() for s, t in pairs)


def test_student_comes_nearer_to_the_teacher_than_plain_fine_tuning_does(trained: list[nn.Module]) -> None:
    images = random_images(24)
    for betas in ((1000, 1000), (0, 0)):
        repaired = quick(betas=betas, epochs=12, teacher_epochs=3, teacher_lr=0.05).repair(tiny(), budget_of(images))
        if any(betas):
            losses = repaired.log["attention_losses"]
            assert losses[-1] < losses[0] / 2
    teacher, student, same_teacher, tuned = trained
    pixels = loaded(random_images(24), student).images
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), same_teacher.parameters(), strict=True))
    assert eval_distance(student, teacher, pixels) < eval_distance(tuned, teacher, pixels)
    assert eval_distance(student, teacher, pixels) < eval_distance(tiny(), teacher, pixels)


def test_teacher_is_the_model_fine_tuned_and_stays_as_it_is(trained: list[nn.Module]) -> None:
    images, expected = random_images(12), tiny()
    how = quick(teacher_epochs=3, warm_epochs=1, warm_lr=0.03, teacher_lr=0.005)
    repaired = how.repair(tiny(), budget_of(images), seed=4)
    losses = train_with_sgd(
        expected, loaded(images, expected), NAD(**{**vars(how), "epochs": 3}), seed=5, nesterov=True,
        lr_of_epoch=lambda epoch: (0.03, 0.005, 0.005)[epoch],
    )  # fmt: skip
    teacher, student = trained
    assert student is repaired.model
    assert repaired.log["teacher_losses"] == losses
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[key]), key
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_student_sees_each_batch_once(trained: list[nn.Module]) -> None:
    """Several passes a batch would move the running statistics several times."""
    model, passes = tiny(), []
    handle = model.register_forward_hook(lambda module, *_: passes.append(module.training))
    quick(epochs=3, teacher_epochs=0).repair(model, budget_of(random_images(12)))
    handle.remove()
    assert passes.count(True) == 3 * 2
    assert passes.count(False) == 1 + 3 * 2  # the stages, and the teacher, which is a copy with the same hook


class InPlace(TinyNet):
    """Changes the maps of both stages after the modules that made them."""

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.bn1(self.conv1(images)), inplace=True)
        second = F.relu(self.bn_sum(first + self.conv2(first)), inplace=True)
        third = F.relu(self.conv3(second), inplace=True)
        return self.linear(third.mean(dim=(2, 3)))  # type: ignore[no-any-return]


NETWORKS = {
    "tiny": (tiny, 12, ["bn_sum 12x12", "conv3 5x5"]),
    "in place": (lambda: shaken(InPlace()), 12, ["bn_sum 12x12", "conv3 5x5"]),
    "preactresnet18": (lambda: small("preactresnet18"), 16, ["layer2 8x8", "layer3 4x4", "layer4 2x2"]),
    "vgg11_bn": (lambda: small("vgg11_bn"), 16, ["features.6 8x8", "features.13 4x4", "features.20 2x2"]),
    "mobilenet_v3_small": (
        lambda: mobilenet_v3_small(num_classes=5).eval(), 32, ["features.1 8x8", "features.3 4x4", "features.8 2x2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_distilled_and_left_in_order(name: str) -> None:
    torch.manual_seed(0)
    make, size, expected = NETWORKS[name]
    model = make()
    before = {key: tensor.clone() for key, tensor in model.named_parameters()}
    repaired = quick(epochs=1, teacher_epochs=1, batch_size=8).repair(
        model, budget_of(random_images(8, size=size), size)
    )
    assert repaired.model is model
    assert repaired.mask is None
    assert repaired.log["stages"] == expected
    assert repaired.log["attention_losses"][0] > 0
    assert all(not torch.equal(tensor, before[key]) for key, tensor in model.named_parameters() if "weight" in key)
    assert not any(module.training for module in model.modules())
    assert hooks(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("betas", "expected"),
    [((9.0,), ["conv3 5x5"]), ((1, 2), ["bn_sum 12x12", "conv3 5x5"]), ((1, 2, 3, 4), ["bn_sum 12x12", "conv3 5x5"])],
)
def test_as_many_of_the_last_stages_as_there_are_betas(betas: tuple[float, ...], expected: list[str]) -> None:
    repaired = quick(betas=betas, epochs=0, teacher_epochs=0).repair(tiny(), budget_of(random_images(4)))
    assert repaired.log == {"stages": expected, "teacher_losses": [], "losses": [], "attention_losses": []}


def test_a_network_of_single_pixels_is_refused_before_anything_is_trained(trained: list[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 12), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)).eval()
    with pytest.raises(ConfigError, match=r"larger than one pixel, and this network has none at 12x12 pixels; use ft"):
        NAD().repair(model, budget_of(random_images(8)))
    assert not trained
    assert hooks(model) == 0


def test_a_crash_leaves_no_hook() -> None:
    model = tiny()
    with pytest.raises(ConfigError, match="diverged"):
        quick(teacher_epochs=0, warm_lr=1e30).repair(model, budget_of(random_images(12)))
    assert hooks(model) == 0


def test_same_seed_same_weights_and_progress_rises_to_the_end() -> None:
    def run(seed: int, told: list[tuple[int, int]]) -> Any:
        how = quick(epochs=2, teacher_epochs=1, flip=True, crop_padding=1)
        return how.repair(tiny(), budget_of(random_images(12)), seed=seed, progress=lambda *now: told.append(now))

    told: list[tuple[int, int]] = []
    first, again, other = run(1, told), run(1, []), run(2, [])
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert first.log == again.log
    states = [result.model.state_dict() for result in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def test_defaults_are_the_authors() -> None:
    how = NAD()
    assert (how.epochs, how.teacher_epochs, how.batch_size, how.betas) == (20, 10, 64, (500, 1000, 1000))
    assert (how.warm_lr, how.warm_epochs, how.lr, how.teacher_lr) == (0.1, 2, 0.01, 0.01)
    assert (how.momentum, how.weight_decay, how.crop_padding, how.flip) == (0.9, 1e-4, 4, True)
    assert how.budget == "benign"
    assert not hasattr(how, "chooses")


@pytest.mark.parametrize(
    "options",
    [
        {"betas": ()}, {"betas": 500}, {"betas": "500"}, {"betas": (1, -1)}, {"betas": [float("nan")]}, {"betas": ["1"]},
        {"momentum": 0.0}, {"warm_lr": 0.0}, {"warm_epochs": -1}, {"teacher_epochs": 1.5}, {"teacher_lr": -1.0},
        {"epochs": -1}, {"lr": 0.0}, {"batch_size": 1},
    ],
)  # fmt: skip
def test_impossible_options_are_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"nad: expected {next(iter(options))} "):
        NAD(**options)


@pytest.mark.parametrize("images", [None, random_images(1)])
def test_too_few_images_are_refused(images: ArrayImages | None) -> None:
    with pytest.raises(ConfigError, match="expected at least 2 benign images"):
        NAD().repair(tiny(), budget_of(images))


def test_two_images_and_a_missing_class_are_enough() -> None:
    images = random_images(20)
    for few in (random_images(2), images.take(np.flatnonzero(images.labels != 2))):
        assert len(quick().repair(tiny(), budget_of(few)).log["losses"]) == 2


def test_more_images_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"holds 12 benign images; give 2 to 12, found 13"):
        draw_budget(fake_record(), "nad", NAD(), n=13)


def test_through_the_runner() -> None:
    record = fake_record()
    before = copy.deepcopy(record.model.state_dict())
    run = run_defense(plan_defense(record, "nad", quick(betas=[500, 1000]), {"betas": [500, 1000]}))
    assert run.outcome.budget == "benign:12"
    assert run.outcome.mask is None
    assert run.outcome.model_dump_json()
    assert all(torch.equal(tensor, before[key]) for key, tensor in record.model.state_dict().items())
    with pytest.raises(ConfigError, match="chooses no parameter"):
        run_defense(plan_defense(record, "nad", quick(), {}, protocol="oracle"))
