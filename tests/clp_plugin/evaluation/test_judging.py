"""One judge for many networks: the same judgements as one by one, and equal networks run once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from counting import calls_counted
from fake_records import TinyNet, bits, fake_record, shaken
from torch import nn

from clp_plugin.errors import RecordError
from clp_plugin.evaluation.judging import RecordJudge
from clp_plugin.evaluation.metrics import judge
from clp_plugin.masking.apply import masked
from clp_plugin.types import Mask

MASK = Mask({"bn1": np.array([True, False, False, True, False, False])})


def test_each_network_gets_its_own_judgement_and_equal_ones_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    record = fake_record()
    networks = [record.model, masked(record.model, MASK), shaken(TinyNet(), seed=5), masked(record.model, MASK)]
    expected = [judge(network, record) for network in networks]
    assert len(set(map(repr, expected))) == 3
    counts = calls_counted(monkeypatch, judge)
    known = RecordJudge(record)
    assert [known.before(), *map(known, networks), known.before()] == [expected[0], *expected, expected[0]]
    assert counts["judge"] == 3


def test_a_mask_that_prunes_nothing_costs_no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    record = fake_record()
    counts = calls_counted(monkeypatch, judge)
    known = RecordJudge(record)
    assert known(masked(record.model, Mask({"bn1": np.zeros(6, bool)}))) == known.before()
    assert counts["judge"] == 1


def test_networks_that_differ_in_what_cannot_be_written_down_are_each_judged() -> None:
    record = fake_record()
    silent = copy.deepcopy(record.model)
    silent.get_submodule("linear").register_forward_hook(lambda module, images, logits: torch.zeros_like(logits))
    known = RecordJudge(record)
    assert known(silent) == judge(silent, record) != known(record.model)


def test_the_records_network_stays_as_it_is() -> None:
    record = fake_record()
    before = bits(record.model)
    RecordJudge(record).before()
    assert bits(record.model) == before


def test_a_record_without_images_cannot_be_judged() -> None:
    with pytest.raises(RecordError, match="expected clean test images"):
        RecordJudge(fake_record(count=0)).before()


def test_a_network_in_training_mode_is_judged_in_eval_mode() -> None:
    record = fake_record()
    network: nn.Module = copy.deepcopy(record.model).train()
    known = RecordJudge(record)
    assert known(network) == known.before()
    assert not network.training
