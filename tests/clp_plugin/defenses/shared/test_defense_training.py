"""What the training defenses share, against loops written by hand."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import TinyNet, normalized, random_images, shaken
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.shared import training as _training
from clp_plugin.defenses.shared.options import require_in_range
from clp_plugin.defenses.shared.training import (
    Labeled,
    SGDTraining,
    accuracy,
    benign_images,
    finite,
    forward,
    hold_out,
    loaded,
    minibatches,
    part_of,
    train_with_sgd,
)
from clp_plugin.errors import ConfigError
from clp_plugin.networks.devices import device_of


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor computes in bfloat16, too, so that a loop by hand can be compared with."""
    monkeypatch.setattr(_training, "resolve", lambda *_: torch.float32)


def numbered(labels: list[int]) -> Labeled:
    """Images of 3 x 4 x 4 pixels, all of the value of their position."""
    values = torch.arange(len(labels), dtype=torch.float32)
    return Labeled(values[:, None, None, None].expand(-1, 3, 4, 4).clone(), torch.tensor(labels))


def ids(data: Labeled) -> list[int]:
    return [int(image[0, 0, 0]) for image in data.images]


def noise(count: int = 12, seed: int = 0) -> Labeled:
    return loaded(random_images(count, seed), nn.Linear(1, 1))


def plain(**options: Any) -> SGDTraining:
    return SGDTraining(**{"epochs": 3, "lr": 0.05, "batch_size": 100, "crop_padding": 0, "flip": False, **options})


def tiny(seed: int = 0) -> nn.Module:
    return shaken(TinyNet(), seed)


# --- held-out images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [(10, 10, 10), (2, 2), (1, 7, 2, 3), (1, 1, 1), (50,), (2,), (1, 1)])
def test_held_out_part_has_its_share_of_each_class_and_nothing_twice(share: float, sizes: tuple[int, ...]) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    data = numbered(labels)
    working, held = hold_out(data, share, seed=3)
    assert sorted(ids(working) + ids(held)) == list(range(len(labels)))
    for part in (working, held):
        assert len(part) >= 1
        assert [labels[i] for i in ids(part)] == part.labels.tolist()
    found = Counter(held.labels.tolist())
    for label, size in enumerate(sizes):
        if size > 1:
            assert found[label] == sorted([1, round(share * size), size - 1])[1]
    if max(sizes) == 1:
        assert len(held) == 1


def test_held_out_part_is_drawn_by_the_seed() -> None:
    data = numbered([i % 3 for i in range(30)])
    draws = [tuple(sorted(ids(hold_out(data, 0.2, seed)[1]))) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "expected"), [(7, 3, [3, 3]), (8, 3, [3, 3, 2]), (5, 9, [5]), (2, 2, [2])])
def test_a_pass_shows_each_image_once_but_for_a_batch_of_one(count: int, size: int, expected: list[int]) -> None:
    data = numbered([i % 2 for i in range(count)])
    batches = list(minibatches(data, size, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == expected
    shown = [i for batch in batches for i in ids(batch)]
    assert len(set(shown)) == len(shown) == sum(expected)
    assert [label for batch in batches for label in batch.labels.tolist()] == [i % 2 for i in shown]


def test_order_is_new_in_each_pass_and_the_same_for_the_same_seed() -> None:
    data, generator = numbered([0] * 20), torch.Generator().manual_seed(5)
    passes = [[i for batch in minibatches(data, 6, generator) for i in ids(batch)] for _ in range(2)]
    again = [i for batch in minibatches(data, 6, torch.Generator().manual_seed(5), crop_padding=0) for i in ids(batch)]
    assert passes[0] == again
    assert passes[0] != passes[1]


def test_augmented_images_keep_their_labels_and_are_shifted_and_mirrored() -> None:
    columns = torch.arange(4.0) + 1
    data = Labeled(10 * torch.arange(30.0)[:, None, None, None] + columns.expand(30, 3, 4, 4), torch.arange(30))
    seen = set()
    for batch in minibatches(data, 10, torch.Generator().manual_seed(0), crop_padding=1, flip=True):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            row = (image[0, 2] - 10 * label * (image[0, 2] != 0)).tolist()
            seen.add(tuple(row))
    assert seen == {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 0), (0, 4, 3, 2), (4, 3, 2, 1), (3, 2, 1, 0)}


# --- SGD -------------------------------------------------------------------------------------------------------------


def sgd_by_hand(
    model: nn.Module, data: Labeled, how: SGDTraining, rates: list[float], *, nesterov: bool
) -> list[float]:
    """All images in one batch, weight by weight: v = momentum v + g, w = w - lr (g + momentum v or v)."""
    speeds: dict[str, Tensor] = {}
    losses = []
    for rate in rates:
        model.train()
        loss = F.cross_entropy(model(data.images), data.labels)
        names, weights = zip(*model.named_parameters(), strict=True)
        slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for name, weight, slope in zip(names, weights, slopes, strict=True):
                slope = slope + how.weight_decay * weight
                speeds[name] = how.momentum * speeds[name] + slope if name in speeds else slope.clone()
                weight -= rate * (slope + how.momentum * speeds[name] if nesterov else speeds[name])
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.5, 0.1), (0.3, 0.0)])
def test_training_is_plain_sgd(nesterov: bool, momentum: float, weight_decay: float) -> None:
    data, model, by_hand = noise(), tiny(), tiny()
    how = plain(epochs=4, momentum=momentum, weight_decay=weight_decay)
    losses = train_with_sgd(model, data, how, seed=1, nesterov=nesterov)
    expected = sgd_by_hand(by_hand, data, how, [how.lr] * 4, nesterov=nesterov)
    assert losses == pytest.approx(expected, rel=1e-4)
    for (name, found), wanted in zip(model.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_learning_rate_may_follow_the_epoch() -> None:
    data, model, by_hand = noise(), tiny(), tiny()
    rates = [0.1, 0.1, 0.01, 0.001]
    how = plain(epochs=4, lr=9.0)
    losses = train_with_sgd(model, data, how, seed=1, lr_of_epoch=lambda epoch: rates[epoch])
    assert losses == pytest.approx(sgd_by_hand(by_hand, data, how, rates, nesterov=False), rel=1e-4)


def test_training_leaves_eval_mode_contiguous_weights_and_rising_progress() -> None:
    model, told = tiny(), []
    losses = train_with_sgd(model, noise(), plain(), seed=0, progress=lambda *told_now: told.append(told_now))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(losses) == 3
    assert not any(module.training for module in model.modules())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_no_epochs_change_nothing() -> None:
    model, before = tiny(), tiny().state_dict()
    assert train_with_sgd(model, noise(), plain(epochs=0), seed=0) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_own_loss_and_what_follows_each_step_are_called_for_each_batch() -> None:
    model, calls = tiny(), []

    def loss_of(batch: Labeled) -> Tensor:
        calls.append(len(batch))
        return (model(batch.images) ** 2).mean()

    steps: list[int] = []
    train_with_sgd(
        model, noise(12), plain(epochs=2, batch_size=5), seed=0, loss_of=loss_of, after_step=lambda: steps.append(1)
    )
    assert calls == [5, 5, 2] * 2
    assert len(steps) == 6


def test_seed_decides_order_and_augmentation() -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        model = tiny()
        train_with_sgd(model, noise(), plain(batch_size=4, crop_padding=2, flip=True), seed=seed)
        return model.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_divergence_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"diverged: its loss is (nan|inf); lower lr"):
        train_with_sgd(tiny(), noise(), plain(lr=1e30), seed=0)
    with pytest.raises(ConfigError, match="lower eps"):
        finite(torch.tensor(float("inf")), "lower eps")


# --- forward passes --------------------------------------------------------------------------------------------------


def test_forward_is_float32_even_where_it_is_computed_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny(), noise().images
    exact = forward(model, images)
    assert torch.equal(exact, model(images))
    monkeypatch.setattr(_training, "resolve", lambda *_: torch.bfloat16)
    rough = forward(model, images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


def test_of_several_outputs_the_first_is_trained() -> None:
    class WithAuxiliary(TinyNet):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            return (logits, logits * 0) if self.training else logits

    model, same = shaken(WithAuxiliary()), tiny()
    train_with_sgd(model, noise(), plain(), seed=0)
    train_with_sgd(same, noise(), plain(), seed=0)
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_accuracy_is_the_share_of_right_images_in_eval_mode(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_training, "_EVALUATION_BATCH", 4)
    images, model = random_images(30), tiny()
    exact = copy.deepcopy(model).double()
    right = [int(exact(normalized(images, i)).argmax()) == label for i, label in enumerate(images.labels.tolist())]
    assert 0 < sum(right) < 30
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert accuracy(model, loaded(images, model)) == sum(right) / 30
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- images and options ----------------------------------------------------------------------------------------------


def test_images_are_loaded_as_the_model_takes_them() -> None:
    images, model = random_images(5), tiny()
    data = benign_images(Budget((3, 12, 12), 5, benign=images), model)
    assert data.images.dtype == torch.float32
    assert data.labels.tolist() == images.labels.tolist()
    for position, image in enumerate(data.images):
        torch.testing.assert_close(image[None].double(), normalized(images, position), rtol=1e-5, atol=1e-6)
    taken = data.take(torch.tensor([3, 1]))
    assert torch.equal(taken.images, data.images[[3, 1]])
    assert taken.labels.tolist() == images.labels[[3, 1]].tolist()


@pytest.mark.parametrize("count", [None, 0, 1])
def test_fewer_than_two_images_are_refused(count: int | None) -> None:
    benign = None if count is None else random_images(2).take(np.arange(count, dtype=np.int64))
    with pytest.raises(ConfigError, match=rf"at least 2 benign images, found {count or 0}; give more with --n-budget"):
        benign_images(Budget((3, 12, 12), 5, benign=benign), tiny())


def test_a_model_without_parameters_is_on_the_cpu() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(tiny()) == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs a whole number of at least 0, found -1"),
        ({"epochs": 2.5}, "epochs a whole number"),
        ({"epochs": True}, "epochs a whole number"),
        ({"lr": 0}, "lr above 0, found 0"),
        ({"lr": float("nan")}, "lr above 0, found nan"),
        ({"batch_size": 1}, "batch_size at least 2"),
        ({"batch_size": 64.0}, "batch_size at least 2"),
        ({"momentum": 1.0}, "momentum in"),
        ({"weight_decay": -1e-4}, "weight_decay at least 0"),
        ({"crop_padding": -1}, "crop_padding a whole number"),
        ({"crop_padding": 1.5}, "crop_padding a whole number"),
    ],
)
def test_impossible_options_are_refused_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"sgdtraining: expected {message}"):
        SGDTraining(**options)


def test_the_first_broken_rule_is_named() -> None:
    require_in_range(plain(), ("lr", True, "x"))
    with pytest.raises(ConfigError, match=r"expected lr at least 7, found 0\.05"):
        require_in_range(plain(), ("epochs", True, "x"), ("lr", False, "at least 7"), ("momentum", False, "x"))


def test_progress_of_a_part_counts_on() -> None:
    told: list[tuple[int, int]] = []
    inner: Callable[[int, int], None] | None = part_of(lambda done, total: told.append((done, total)), 4, 10)
    assert inner is not None
    inner(1, 6)
    inner(6, 6)
    assert told == [(5, 10), (10, 10)]
    assert part_of(None, 0, 1) is None
