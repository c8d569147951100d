"""Metrics against loops over single images that follow the definitions word by word."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_records import CLASSES, TinyNet, fake_record, normalized, random_images, with_wrong_pairs
from torch import Tensor, nn

from clp_plugin.errors import RecordError
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.fusion.layers import fuse
from clp_plugin.images import ArrayImages
from clp_plugin.types import Mask, Metrics, Record, TriggeredSet, defense_effectiveness


def slow_class(model: nn.Module, images: ArrayImages, position: int) -> int:
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(normalized(images, position))[0].tolist()
    return max(range(len(logits)), key=logits.__getitem__)


def slow_metrics(record: Record) -> Metrics:
    clean, triggered = record.clean, record.triggered.images
    assert isinstance(clean, ArrayImages)
    assert isinstance(triggered, ArrayImages)
    right = sum(slow_class(record.model, clean, i) == clean.labels[i] for i in range(len(clean)))
    hits = recovered = already = counted = 0
    for i in range(len(triggered)):
        true = int(triggered.labels[i])
        wanted = record.target.target if record.target.kind == "all_to_one" else (true + 1) % CLASSES
        if wanted == true:
            continue
        counted += 1
        found = slow_class(record.model, triggered, i)
        hits += found == wanted
        recovered += found == true
        already += slow_class(record.model, clean, int(record.triggered.clean_index[i])) == wanted
    return Metrics(
        right / len(clean), hits / counted, recovered / counted, already / counted, len(clean), counted
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "target"), [("all_to_one", 1), ("all_to_one", 0), ("all_to_all", None)])
def test_metrics_are_what_a_loop_over_single_images_counts(kind: str, target: int | None) -> None:
    seen: set[float] = set()
    for seed in (0, 1, 2):
        record = fake_record(kind=kind, target=target, seed=seed)  # type: ignore[arg-type]
        found, expected = evaluate(record.model, record), slow_metrics(record)
        assert found == expected
        seen |= {found.acc, found.asr, found.ra, found.base_rate}
    assert len(seen) > 4, "random networks that all answer alike would test nothing"


def test_triggered_images_of_the_target_class_do_not_count() -> None:
    record = fake_record()
    wider = with_wrong_pairs(record)
    assert len(wider.triggered.images) > len(record.triggered.images)
    found = evaluate(wider.model, wider)
    assert found == slow_metrics(wider)
    assert found == evaluate(record.model, record)


def test_all_to_all_counts_every_image_and_wraps_around_at_the_last_class() -> None:
    class SaysNext(nn.Module):
        """Reads the label off the first pixel and answers the next class."""

        def forward(self, images: Tensor) -> Tensor:
            labels = (images[:, 0, 0, 0] * 255).round().long()
            return nn.functional.one_hot((labels + 1) % CLASSES, CLASSES).float()

    record = fake_record(kind="all_to_all")
    labels = record.clean.labels
    pixels = np.zeros((len(labels), 3, 4, 4), dtype=np.uint8)
    pixels[:, 0, 0, 0] = labels
    images = ArrayImages(pixels, labels, (0.0,) * 3, (1.0,) * 3)
    record = replace(record, clean=images, triggered=TriggeredSet(images, np.arange(len(labels))))
    found = evaluate(SaysNext(), record)
    assert (found.acc, found.asr, found.ra, found.base_rate) == (0, 1, 0, 1)
    assert found.n_triggered == len(labels)
    assert CLASSES - 1 in labels


def test_base_rate_is_of_the_twins_and_not_of_other_clean_images() -> None:
    record = fake_record(target=2)
    rng = np.random.default_rng(5)
    shuffled = rng.permutation(len(record.triggered.clean_index))
    moved = replace(
        record,
        triggered=TriggeredSet(record.triggered.images.take(shuffled), record.triggered.clean_index[shuffled]),
    )
    assert evaluate(moved.model, moved) == evaluate(record.model, record)
    few = record.triggered.clean_index[:7]
    part = replace(record, triggered=TriggeredSet(record.triggered.images.take(np.arange(7)), few))
    assert isinstance(record.clean, ArrayImages)
    answers = [slow_class(record.model, record.clean, int(i)) for i in few]
    assert evaluate(part.model, part).base_rate == answers.count(2) / 7


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(batch_size: int) -> None:
    record = fake_record(seed=3)
    assert evaluate(record.model, record, batch_size=batch_size) == evaluate(record.model, record)


class Returning(nn.Module):
    """A network that returns more than its logits."""

    def __init__(self, network: nn.Module, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, images: Tensor) -> object:
        return self.wrap(self.network(images))


@pytest.mark.parametrize("wrap", [lambda t: (t, t.sum()), lambda t: {"features": t[:, :2], "logits": t}])
def test_model_that_returns_more_than_logits_is_judged_by_them(wrap: Callable[[Tensor], object]) -> None:
    record = fake_record()
    model = Returning(record.model, wrap).eval()
    expected = evaluate(record.model, record)
    assert evaluate(model, record) == expected
    assert evaluate_masks(model, record, [Mask({})])[0].metrics == expected
    assert [layer.name for layer in fuse(model, record.input_shape).layers if layer.kind == "head"]


def test_model_in_training_mode_is_judged_in_eval_mode_and_its_weights_stay() -> None:
    record = fake_record(nn.Sequential(nn.Dropout(0.9), TinyNet()))
    expected = evaluate(record.model, record)
    before = {key: tensor.clone() for key, tensor in record.model.state_dict().items()}
    assert evaluate(record.model.train(), record) == expected
    assert all(torch.equal(before[key], tensor) for key, tensor in record.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_of_any_precision_is_fed_in_its_own(dtype: torch.dtype) -> None:
    record = fake_record()
    found = evaluate(copy.deepcopy(record.model).to(dtype), record)
    assert found.acc == pytest.approx(evaluate(record.model, record).acc, abs=0.1)


def test_progress_counts_all_images_once() -> None:
    record = fake_record()
    calls: list[tuple[int, int]] = []
    evaluate(record.model, record, batch_size=16, progress=lambda done, total: calls.append((done, total)))
    total = len(record.clean) + len(record.triggered.images)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (total, total)


def test_record_without_images_that_count_is_refused() -> None:
    record = fake_record()
    nothing = np.zeros(0, dtype=np.int64)
    with pytest.raises(RecordError, match=r"nowhere/fake: expected clean test images.* found 40 and 0"):
        evaluate(
            record.model, replace(record, triggered=TriggeredSet(record.triggered.images.take(nothing), nothing))
        )  # fmt: skip
    with pytest.raises(RecordError, match=r"found 0 and"):
        evaluate(record.model, replace(record, clean=random_images(0)))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),  # all of the backdoor gone, nothing lost
        ((0.9, 1.0), (0.9, 1.0), 0.5),  # nothing happened
        ((0.9, 1.0), (0.4, 1.0), 0.25),
        ((0.9, 0.5), (0.95, 0.7), 0.5),  # gains on either side do not count
        ((0.9, 1.0), (0.8, 0.1), 0.9),
    ],
)
def test_defense_effectiveness_follows_the_definition(
    before: tuple[float, float], after: tuple[float, float], expected: float
) -> None:
    first, second = (Metrics(acc, asr, 0.0, 0.0, 10, 10) for acc, asr in (before, after))
    assert defense_effectiveness(first, second) == pytest.approx(expected)
