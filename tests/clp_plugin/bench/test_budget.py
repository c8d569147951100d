"""What a defense may see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fake_records import fake_record, random_images

from clp_plugin.bench.budget import draw_budget
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.clp import CLP
from clp_plugin.defenses.shared.choice import ORACLE_U
from clp_plugin.errors import ConfigError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.fusion.layers import fuse
from clp_plugin.images import ArrayImages
from clp_plugin.masking.apply import masked
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.types import LayerKind, Record


@dataclass
class Needs:
    budget: Any
    chooses: str = ""

    def repair(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture
def record() -> Record:
    return replace(fake_record(), benign=random_images(600, seed=7), poisoned_training=random_images(30, seed=8))


def test_a_data_free_defense_sees_no_image(record: Record) -> None:
    budget, label = draw_budget(record, "x", Needs("none"))
    assert (budget.benign, budget.poisoned, budget.judge, label) == (None, None, None, "none")
    assert (budget.mean, budget.std) == (record.provenance.mean, record.provenance.std)


def test_five_hundred_benign_images_are_the_default_and_they_are_different_ones(record: Record) -> None:
    budget, label = draw_budget(record, "x", Needs("benign"))
    assert label == "benign:500"
    assert isinstance(budget.benign, ArrayImages)
    assert len({one.tobytes() for one in budget.benign.pixels}) == 500
    assert budget.poisoned is None


def test_the_seed_decides_which(record: Record) -> None:
    def drawn(seed: int) -> torch.Tensor:
        benign = draw_budget(record, "x", Needs("benign"), n=20, seed=seed)[0].benign
        assert benign is not None
        return next(iter(benign.batches(20)))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_small_record_gives_all_it_has(record: Record) -> None:
    budget, label = draw_budget(record, "x", Needs("poisoned"))
    assert label == "poisoned:30"
    assert budget.benign is None
    assert budget.poisoned is not None
    assert len(budget.poisoned) == 30


@pytest.mark.parametrize(
    ("kind", "n", "message"),
    [
        ("benign", 601, "holds 600 benign images; give 2 to 600, found 601"),
        ("benign", 1, "give 2 to 600, found 1"),
        ("poisoned", 31, "holds 30 images of the poisoned training set; give 2 to 30"),
        ("none", 5, "x sees no images; leave out --n-budget"),
    ],
)
def test_an_impossible_number_of_images_is_told(record: Record, kind: str, n: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_budget(record, "x", Needs(kind), n=n)


def test_a_record_without_such_images_is_told(record: Record) -> None:
    with pytest.raises(ConfigError, match="x needs images of the poisoned training set, and nowhere/fake holds none"):
        draw_budget(replace(record, poisoned_training=None), "x", Needs("poisoned"))


def test_only_the_oracle_has_a_judge_and_only_where_something_is_chosen(record: Record) -> None:
    assert draw_budget(record, "x", Needs("none", "u"))[0].judge is None
    judge = draw_budget(record, "x", Needs("none", "u"), protocol="oracle")[0].judge
    assert judge is not None
    assert judge(record.model) == evaluate(record.model, record)
    with pytest.raises(ConfigError, match="x chooses no parameter by results; run it without --protocol oracle"):
        draw_budget(record, "x", Needs("none"), protocol="oracle")


def test_clp_as_an_oracle_takes_the_u_of_the_lowest_asr_that_keeps_nine_tenths_of_accuracy() -> None:
    record = fake_record(count=200)
    before = evaluate(record.model, record)
    scores = score(fuse(record.model, record.input_shape))
    kinds: tuple[LayerKind, ...] = ("fused", "diagonal", "conv")
    best, expected = before.asr, None
    for u in ORACLE_U:  # from the weakest pruning on, by the definition
        found = evaluate(masked(record.model, select(scores, u, layers=kinds)), record)
        if before.acc - found.acc < 0.1 * before.acc and found.asr < best:
            best, expected = found.asr, u
    assert expected is not None, "nothing to choose: give another record"
    run = run_defense(plan_defense(record, "clp", CLP(layers=",".join(kinds)), {}, protocol="oracle"))
    assert run.outcome.protocol == "oracle"
    assert run.after.asr == best
    assert run.outcome.log["u"] == expected
