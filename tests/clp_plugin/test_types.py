"""Masks, target rules and DER by hand-made numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from clp_plugin.errors import ConfigError, MaskError
from clp_plugin.types import Mask, Metrics, TargetRule, defense_effectiveness


def mask(**layers: str) -> Mask:
    return Mask({name: np.array([c == "x" for c in row]) for name, row in layers.items()})


def test_length_counts_pruned_channels() -> None:
    assert len(mask(a="x.x", b="...")) == 2
    assert len(Mask({})) == 0


def test_equal_masks_ignore_order_and_untouched_layers() -> None:
    assert mask(a="x.", b="..") == mask(a="x.")
    assert mask(a="x.", b=".x") == mask(b=".x", a="x.")
    assert mask(a="x.") != mask(a=".x")
    assert mask(a="x.") != "mask"
    assert hash(mask(a="x.", b="..")) == hash(mask(a="x."))
    assert mask(a="x.", b=".x").fingerprint() == mask(b=".x", a="x.").fingerprint() != mask(a="x.").fingerprint()


def test_union_keeps_every_channel_of_both() -> None:
    left, right = mask(a="x.."), mask(a="..x", b="x")
    assert left | right == mask(a="x.x", b="x")
    assert left == mask(a="x..")  # neither side was changed


def test_union_of_different_widths_is_refused() -> None:
    with pytest.raises(MaskError, match=r"'a' has 2 channels in one mask, 3"):
        mask(a="x.") | mask(a="x..")


def test_indices_and_repr_show_what_is_pruned() -> None:
    assert mask(a=".xx", b="..").indices() == {"a": [1, 2]}
    assert repr(mask(a=".xx", b="..")) == "Mask(2 channels: a 2/3)"
    assert "nothing" in repr(mask(b=".."))


def test_json_round_trip_keeps_widths_and_untouched_layers() -> None:
    before = mask(a=".xx.", b="..")
    after = Mask.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    assert {name: v.tolist() for name, v in after.pruned.items()} == {n: v.tolist() for n, v in before.pruned.items()}


@pytest.mark.parametrize(
    "entry",
    [
        {"pruned": [0]}, {"channels": 3}, {"channels": 3, "pruned": [3]}, {"channels": 3, "pruned": [-1]},
        {"channels": 3, "pruned": ["a"]}, {"channels": 3, "pruned": [1.5]}, {"channels": -1, "pruned": []},
        {"channels": "many", "pruned": []}, [0, 1], None,
    ],
)  # fmt: skip
def test_damaged_json_names_the_layer(entry: Any) -> None:
    with pytest.raises(MaskError, match=r"layer1\.bn"):
        Mask.from_json({"layer1.bn": entry})


def test_all_to_one_wants_the_target_and_leaves_its_own_images_out() -> None:
    rule, labels = TargetRule("all_to_one", 4, target=2), np.array([0, 2, 3, 2])
    assert rule.wanted(labels).tolist() == [2, 2, 2, 2]
    assert rule.counted(labels).tolist() == [True, False, True, False]


def test_all_to_all_wants_the_next_label_and_counts_every_image() -> None:
    rule, labels = TargetRule("all_to_all", 4), np.array([0, 2, 3])
    assert rule.wanted(labels).tolist() == [1, 3, 0]
    assert rule.counted(labels).all()


@pytest.mark.parametrize("target", [None, -1, 4])
def test_target_outside_the_classes_is_refused(target: int | None) -> None:
    with pytest.raises(ConfigError, match="0 to 3"):
        TargetRule("all_to_one", 4, target=target)


@pytest.mark.parametrize(
    ("after", "expected"), [((0.9, 0.1), 0.9), ((0.8, 0.0), 0.9), ((1.0, 1.0), 0.5), ((0.4, 0.9), 0.25)]
)
def test_der_rewards_lost_attacks_and_charges_lost_accuracy(after: tuple[float, float], expected: float) -> None:
    before = Metrics(acc=0.9, asr=0.9, ra=0.1, base_rate=0.0, n_clean=10, n_triggered=9)
    now = Metrics(acc=after[0], asr=after[1], ra=0.5, base_rate=0.0, n_clean=10, n_triggered=9)
    assert defense_effectiveness(before, now) == pytest.approx(expected)
    assert now.to_json()["n_triggered"] == 9
