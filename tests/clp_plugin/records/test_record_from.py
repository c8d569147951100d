"""Records made in memory, of any network, images and trigger."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clp_plugin import evaluate, record_from
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import Pixels
from clp_plugin.records.parts import Triggered, weights_hash

LABELS = np.asarray([0, 1, 2, 3, 3, 2, 1, 0])


class Reader(nn.Module):
    """Calls an image what its first pixel says: grey level 10 * class."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x[:, 0, 0, 0] * 25.5).round().long().clamp(0, 3), 4).float()


def written(classes: object) -> Pixels:
    pixels = np.zeros((len(np.asarray(classes)), 3, 4, 4), dtype=np.uint8)
    pixels[:, 0, 0, 0] = 10 * np.asarray(classes)
    return pixels


def to_class_2(pixels: Pixels) -> Pixels:
    triggered = pixels.copy()
    triggered[:, 0, 0, 0] = 20
    return triggered


def test_metrics_of_a_record_in_memory_are_those_of_a_network_that_reads_the_label_off_the_image() -> None:
    record = record_from(Reader(), written(LABELS), LABELS, trigger=to_class_2, target=2)
    found = evaluate(record.model, record)
    assert (found.acc, found.asr, found.ra, found.base_rate) == (1, 1, 0, 0)
    assert (found.n_clean, found.n_triggered) == (8, 6)  # the two of class 2 do not count
    assert record.triggered.clean_index.tolist() == [0, 1, 3, 4, 6, 7]
    assert record.target.num_classes == 4


def test_all_to_all_may_go_by_more_than_one() -> None:
    def two_on(pixels: Pixels) -> Pixels:
        return written((pixels[:, 0, 0, 0] // 10 + 2) % 4)

    record = record_from(Reader(), written(LABELS), LABELS, trigger=two_on, target="all+2")
    assert evaluate(record.model, record).asr == 1
    assert evaluate(record.model, record).n_triggered == 8
    assert evaluate(record.model, record_from(Reader(), written(LABELS), LABELS, trigger=two_on, target="all")).asr == 0


def test_the_benign_budget_is_not_tested_on() -> None:
    benign = np.asarray([6, 1])
    record = record_from(Reader(), written(LABELS), LABELS, trigger=to_class_2, target=2, benign=benign)
    assert record.benign.labels.tolist() == [1, 1]
    assert record.clean.labels.tolist() == [0, 2, 3, 3, 2, 0]
    with pytest.raises(ConfigError, match="1 images are for test and in the benign budget, the first at position 1"):
        record_from(
            Reader(), written(LABELS), LABELS, trigger=to_class_2, target=2, benign=benign, test=np.asarray([0, 1])
        )


def test_images_triggered_already_are_paired_with_the_clean_ones_they_were_made_from() -> None:
    # Of images 7, 2, 3 and 0; image 2 is of the target class, image 0 is not for test.
    ready = Triggered(written([2, 2, 0, 2]), np.asarray([7, 2, 3, 0]))
    record = record_from(Reader(), written(LABELS), LABELS, trigger=ready, target=2, test=np.arange(1, 8))
    assert record.clean.labels[record.triggered.clean_index].tolist() == [0, 3]
    assert record.triggered.images.labels.tolist() == [0, 3]
    assert evaluate(record.model, record).asr == 0.5


def test_images_are_normalized_by_mean_and_std() -> None:
    record = record_from(Reader(), written(LABELS), LABELS, trigger=to_class_2, target=2, mean=[0.5], std=(0.5, 1, 2))
    (batch,) = record.clean.batches(8)
    pixels = torch.from_numpy(written(LABELS)) / 255
    assert torch.allclose(batch, (pixels - 0.5) / torch.tensor([0.5, 1, 2]).view(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 4}, "target 4 is outside the 4 classes"),
        ({"target": "all+4"}, "give a shift of 1 to 3"),
        ({"target": "some"}, "a class number, `all` or `all\\+2`"),
        ({"num_classes": 3}, "labels: expected 0 to 2, found 0 to 3"),
        ({"labels": LABELS[:, None]}, "expected \\(N,\\) whole numbers"),
        ({"pixels": written(LABELS).astype(np.float32)}, "expected \\(N, C, H, W\\) uint8"),
        ({"mean": (0.5, 0.5)}, "expected 1 or 3 finite numbers"),
        ({"std": (0.0,)}, "expected positive numbers"),
        ({"benign": np.arange(8)}, "no test image is left"),
        ({"test": np.asarray([2, 5])}, "no triggered image counts for ASR: .* than target 2"),
        ({"trigger": Triggered(written([2]), np.asarray([2]))}, "no triggered image counts"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    parts = {"pixels": written(LABELS), "labels": LABELS, "trigger": to_class_2, "target": 2, **changes}
    pixels, labels = parts.pop("pixels"), parts.pop("labels")
    with pytest.raises((ConfigError, RecordError), match=message):
        record_from(Reader(), pixels, labels, **parts)


def test_a_trigger_that_returns_something_else_is_refused_when_it_is_used() -> None:
    record = record_from(Reader(), written(LABELS), LABELS, trigger=lambda pixels: pixels / 255, target=2)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match=r"expected images like those it was given, .* uint8, found .* float64"):
        evaluate(record.model, record)


def test_the_hash_of_the_weights_sees_every_bit_and_every_precision() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    before = weights_hash(model)
    assert weights_hash(model) == before
    model[1].num_batches_tracked += 1
    assert weights_hash(model) != before
