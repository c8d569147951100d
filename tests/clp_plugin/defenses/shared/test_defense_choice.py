"""How much to prune: cases worked out by hand, on a model whose accuracy is looked up in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clp_plugin.defenses.shared import choice as _choice
from clp_plugin.defenses.shared.choice import Candidate, choose, choose_by_benign_accuracy, choose_by_test_set
from clp_plugin.defenses.shared.training import Labeled
from clp_plugin.errors import ConfigError
from clp_plugin.types import Mask, Metrics

CHANNELS = 6


def model() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        norm.bias.copy_(torch.arange(1.0, CHANNELS + 1))
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3), norm).eval()


def mask(*pruned: int) -> Mask:
    return Mask({"1": np.isin(np.arange(CHANNELS), pruned)})


def first(count: int) -> Mask:
    return mask(*range(count))


def steps(*counts: int) -> list[Candidate]:
    """Candidates of the values 0, 10, 20, ... that prune so many channels."""
    return [Candidate(10.0 * place, first(count)) for place, count in enumerate(counts)]


class Table:
    """Accuracy, or metrics, by how many channels are silent; remembers what it was asked."""

    def __init__(self, by_count: Mapping[int, Any], *, bias_stays: bool = False) -> None:
        self.by_count, self.bias_stays = by_count, bias_stays
        self.asked: list[int] = []

    def __call__(self, network: Any, *_: object) -> Any:
        silent = network[1].weight == 0
        if self.bias_stays:
            assert network[1].bias.tolist() == [1, 2, 3, 4, 5, 6]
        else:
            assert not network[1].bias[silent].any()
        self.asked.append(int(silent.sum()))
        return self.by_count[self.asked[-1]]


def held_out(count: int = 100) -> Labeled:
    return Labeled(torch.zeros(count, 3, 4, 4), torch.zeros(count, dtype=torch.int64))


@pytest.fixture
def network() -> nn.Module:
    return model()


def by_accuracy(
    monkeypatch: pytest.MonkeyPatch,
    network: nn.Module,
    table: Table,
    candidates: list[Candidate],
    tolerance: float = 0.05,
) -> Any:
    monkeypatch.setattr(_choice, "accuracy", table)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chosen = choose_by_benign_accuracy(network, candidates, held_out(), tolerance, keep_bias=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    return chosen


def test_strongest_within_the_tolerance_wins(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    table = Table({0: 0.9, 1: 0.89, 2: 0.86, 3: 0.85, 4: 0.84})
    chosen = by_accuracy(monkeypatch, network, table, steps(0, 1, 2, 3, 4))
    assert (chosen.value, chosen.mask) == (30.0, first(3))
    assert chosen.log["held_out_acc"] == 0.9
    assert chosen.log["tried"] == [
        {"value": 10.0 * n, "pruned": n, "acc": acc} for n, acc in enumerate([0.9, 0.89, 0.86, 0.85, 0.84])
    ]
    assert chosen.log["rule"] == "strongest with at most 0.05 less accuracy on 100 held-out benign images"


def test_search_ends_at_the_first_that_costs_too_much(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    table = Table({0: 0.9, 1: 0.9, 2: 0.7, 3: 0.95, 4: 0.9})
    chosen = by_accuracy(monkeypatch, network, table, steps(0, 1, 2, 3, 4))
    assert (chosen.value, chosen.mask) == (10.0, first(1))
    assert table.asked == [0, 1, 2]


def test_equal_masks_are_evaluated_once_and_the_strongest_value_named(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module
) -> None:
    table = Table({0: 0.9, 2: 0.88, 3: 0.1})
    chosen = by_accuracy(monkeypatch, network, table, steps(0, 0, 2, 2, 2, 3, 3))
    assert table.asked == [0, 2, 3]
    assert (chosen.value, chosen.mask) == (40.0, first(2))
    assert [row["acc"] for row in chosen.log["tried"]] == [0.9, 0.9, 0.88, 0.88, 0.88, 0.1]


def test_nothing_is_pruned_if_the_weakest_costs_too_much(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    table = Table({0: 0.9, 2: 0.5, 3: 0.9})
    chosen = by_accuracy(monkeypatch, network, table, steps(2, 3))
    assert (chosen.value, len(chosen.mask)) == (None, 0)
    assert table.asked == [0, 2]


@pytest.mark.parametrize(("images", "lost", "allowed"), [(20, 1, True), (20, 2, False), (30, 2, True), (30, 3, False)])
def test_tolerance_counts_whole_images(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, images: int, lost: int, allowed: bool
) -> None:
    """5 % of 20 images is one; of 30 it is one and a half, and rounding must not decide: two pass."""
    monkeypatch.setattr(_choice, "accuracy", Table({0: 1.0, 1: (images - lost) / images}))
    chosen = choose_by_benign_accuracy(network, steps(0, 1), held_out(images), 0.05, keep_bias=False)
    assert len(chosen.mask) == int(allowed)


def test_kept_biases_are_kept_while_it_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_choice, "accuracy", Table({0: 0.9, 1: 0.9}, bias_stays=True))
    found = choose_by_benign_accuracy(model(), steps(0, 1), held_out(), 0.0, keep_bias=True)
    assert len(found.mask) == 1


def metrics(acc: float, asr: float) -> Metrics:
    return Metrics(acc=acc, asr=asr, ra=0.0, base_rate=0.0, n_clean=100, n_triggered=90)


ORACLE = {
    0: metrics(0.8, 1.0),
    1: metrics(0.79, 0.6),
    2: metrics(0.75, 0.3),
    3: metrics(0.72, 0.0),  # a tenth of 0.8 is lost: too much, whatever the ASR
    4: metrics(0.74, 0.2),
    5: metrics(0.76, 0.5),
}


def by_test_set(network: nn.Module, table: Table, candidates: list[Candidate], **rule: Any) -> Any:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chosen = choose_by_test_set(network, candidates, table, keep_bias=False, **rule)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    return chosen


def test_oracle_takes_the_lowest_asr_of_those_that_stay_accurate(network: nn.Module) -> None:
    table = Table(ORACLE)
    chosen = by_test_set(network, table, steps(0, 1, 2, 3, 4, 5))
    assert (chosen.value, chosen.mask) == (40.0, first(4))
    assert chosen.log["rule"] == "oracle: lowest test ASR with less than 10 % loss of test ACC"
    assert chosen.log["tried"][3] == {"value": 30.0, "pruned": 3, "acc": 0.72, "asr": 0.0}
    assert table.asked == [0, 1, 2, 3, 4, 5]


def test_oracle_by_accuracy_stops_at_the_first_that_loses_a_tenth(network: nn.Module) -> None:
    table = Table(ORACLE)
    chosen = by_test_set(network, table, steps(0, 1, 2, 3, 4, 5), by="acc")
    assert (chosen.value, chosen.mask) == (20.0, first(2))
    assert table.asked == [0, 1, 2, 3]
    assert chosen.log["rule"] == "oracle: strongest with less than 10 % loss of test ACC"


def test_oracle_judges_equal_masks_once(network: nn.Module) -> None:
    table = Table(ORACLE)
    chosen = by_test_set(network, table, steps(0, 0, 1, 1, 4))
    assert table.asked == [0, 1, 4]
    assert len(chosen.log["tried"]) == 5


def test_of_equal_asr_the_weakest_pruning_wins(network: nn.Module) -> None:
    table = Table({0: metrics(0.8, 0.5), 1: metrics(0.8, 0.2), 2: metrics(0.8, 0.2)})
    assert by_test_set(network, table, steps(0, 1, 2)).value == 10.0


@pytest.mark.parametrize("by", ["asr", "acc"])
def test_oracle_prunes_nothing_if_nothing_helps(network: nn.Module, by: Any) -> None:
    table = Table({0: metrics(0.8, 0.5), 1: metrics(0.3, 0.0), 2: metrics(0.2, 0.0)})
    assert len(by_test_set(network, table, steps(1, 2), by=by).mask) == 0


def test_judge_wins_over_a_fixed_value_and_that_over_benign_accuracy(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module
) -> None:
    monkeypatch.setattr(_choice, "accuracy", Table({0: 0.9, 1: 0.9, 2: 0.2}))
    common: Any = {"held_out": held_out(), "tolerance": 0.05, "keep_bias": False}
    benign = choose(network, steps(0, 1, 2), fixed=None, judge=None, **common)
    fixed = choose(network, steps(0, 1, 2), fixed=20.0, judge=None, **common)
    oracle = choose(network, steps(0, 1, 2), fixed=20.0, judge=Table(ORACLE), oracle_by="acc", **common)
    assert (benign.value, fixed.value, oracle.value) == (10.0, 20.0, 20.0)
    assert (fixed.mask, fixed.log) == (first(2), {"rule": "fixed"})
    assert oracle.log["rule"].startswith("oracle")
    with pytest.raises(ConfigError, match=r"expected one of \[0.0, 10.0, 20.0\], found 5"):
        choose(network, steps(0, 1, 2), fixed=5, judge=None, **common)
