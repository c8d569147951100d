"""The curve over u: each point against a fresh run, and no more work than there are distinct masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import fake_record, normalized
from torch import nn

from clp_plugin.errors import ConfigError
from clp_plugin.evaluation import many_masks
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.evaluation.metrics import Judgement, evaluate, judge
from clp_plugin.evidence import sweep as sweeping
from clp_plugin.evidence.sweep import parse_range, sweep
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import masked
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.types import Mask, Record, Scores

VALUES = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 1.0]


@pytest.fixture(scope="module")
def setting() -> tuple[Record, Scores]:
    record = fake_record(seed=2)
    return record, score(fuse(record.model, record.input_shape))


def test_every_row_is_what_pruning_a_fresh_copy_gives(setting: tuple[Record, Scores]) -> None:
    record, scores = setting
    rows = sweep(record, scores, VALUES)
    assert [row.u for row in rows] == VALUES
    for row in rows:
        mask = select(scores, row.u)
        expected = evaluate(masked(record.model, mask), record)
        assert (row.pruned, row.acc, row.asr, row.ra) == (len(mask), expected.acc, expected.asr, expected.ra)
    assert rows[-2].pruned == 0
    assert rows[0].pruned > rows[2].pruned > 0
    assert len({(row.acc, row.asr, row.ra) for row in rows}) > 2


def test_each_distinct_mask_is_evaluated_once(setting: tuple[Record, Scores], monkeypatch: pytest.MonkeyPatch) -> None:
    record, scores = setting
    asked: list[list[Mask]] = []

    def counting(model: nn.Module, record: Record, masks: list[Mask], **options: Any) -> list[Judgement]:
        asked.append(masks)
        return evaluate_masks(model, record, masks, **options)

    monkeypatch.setattr(sweeping, "evaluate_masks", counting)
    distinct = {select(scores, u).fingerprint() for u in VALUES}
    sweep(record, scores, VALUES)
    assert [[mask.fingerprint() for mask in masks] for masks in asked] == [list(dict.fromkeys(
        select(scores, u).fingerprint() for u in VALUES
    ))]  # fmt: skip
    assert len(distinct) < len(VALUES) - 1


def test_a_mask_that_was_judged_already_is_not_run_again(
    setting: tuple[Record, Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, scores = setting
    values = [0.5, 1.0, 9.0]
    wanted = sweep(record, scores, values)
    known = {select(scores, u): judge(masked(record.model, select(scores, u)), record) for u in values}
    monkeypatch.setattr(sweeping, "evaluate_masks", None)
    assert sweep(record, scores, values, known=known) == wanted, "judge gives what a sweep gives, losses included"


def test_losses_are_means_over_batches_of_the_mean_cross_entropy(setting: tuple[Record, Scores]) -> None:
    record, scores = setting
    row = sweep(record, scores, [1.0], batch_size=16)[0]
    model = masked(record.model, select(scores, 1.0)).double()
    triggered = record.triggered.images
    for images, wanted, found in (
        (record.clean, record.clean.labels, row.clean_loss),
        (triggered, record.target.wanted(triggered.labels), row.triggered_loss),
    ):
        means = []
        for start in range(0, len(images), 16):
            part = np.arange(start, min(start + 16, len(images)))
            logits = [model(normalized(images, k))[0].tolist() for k in part]  # type: ignore[arg-type]
            losses = [math.log(sum(map(math.exp, z))) - z[wanted[k]] for z, k in zip(logits, part, strict=True)]
            means.append(sum(losses) / len(losses))
        assert found == pytest.approx(sum(means) / len(means), rel=1e-5)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def test_model_is_left_bit_by_bit_as_it_was_even_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    record = fake_record()
    record.model.get_submodule("bn1").weight.data[0] = -0.0  # a sign that x + 0 - 0 would lose
    scores = score(fuse(record.model, record.input_shape))
    before = state(record.model)

    def unchanged() -> bool:
        after = record.model.state_dict()
        return all(
            torch.equal(before[k].flatten().view(torch.uint8), after[k].flatten().view(torch.uint8)) for k in before
        )

    sweep(record, scores, [0.0, 1.0])
    assert unchanged()

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(many_masks, "apply_mask", failing)
    with pytest.raises(RuntimeError, match="boom"):
        sweep(record, scores, [0.0])
    assert unchanged()


def test_sweep_twice_gives_the_same_rows(setting: tuple[Record, Scores]) -> None:
    record, scores = setting
    first = sweep(record, scores, [0.0, 1.0])
    again = sweep(copy.deepcopy(record), scores, [0.0, 1.0])
    assert first == again


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:2:0.5", [0, 0.5, 1, 1.5, 2]),
        ("0:10:0.5", [i / 2 for i in range(21)]),
        ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),  # the last one is there in spite of rounding
        ("1:2:0.4", [1, 1.4, 1.8]),
        ("3:3:1", [3]),
        ("3", [3]),
        ("5, 1,2.5", [5, 1, 2.5]),
    ],
)
def test_range_includes_both_ends(text: str, expected: list[float]) -> None:
    assert parse_range(text) == expected


def bad_ranges() -> Iterator[tuple[str, str]]:
    for text in ("", "a", "1,,2", "1:2", "1:2:3:4", "2:1:1", "0:1:0", "0:1:-1", "nan:1:1", "0:1:nan"):
        yield text, "expected FIRST:LAST:STEP or a list"
    for text in ("0:inf:1", "0:1:1e-9", "0:1e9:1"):
        yield text, "more than 10000 values"
    for text in ("-1", "1,-0.5", "-1:1:1", "nan", "1,nan"):
        yield text, "must be 0 or more"


@pytest.mark.parametrize(("text", "message"), list(bad_ranges()))
def test_impossible_range_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_range(text)


def test_negative_u_is_refused(setting: tuple[Record, Scores]) -> None:
    with pytest.raises(ConfigError, match="u must be 0 or more"):
        sweep(*setting, [1.0, -1.0])


def test_row_is_plain_data(setting: tuple[Record, Scores]) -> None:
    row = sweep(*setting, [1.0])[0].to_json()
    assert list(row) == ["u", "pruned", "acc", "asr", "ra", "clean_loss", "triggered_loss"]
    assert not any(isinstance(value, np.generic) for value in row.values())
