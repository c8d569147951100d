"""A round of DHBE: its parts against slow loops, its steps against steps written by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fake_records import MEAN, STD
from tiny_dhbe import QUICK, game_of, same, state, tiny
from torch import Tensor, nn

from clp_plugin.defenses.dhbe import nets
from clp_plugin.defenses.dhbe.defense import DHBE
from clp_plugin.defenses.dhbe.game import student_loss


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
