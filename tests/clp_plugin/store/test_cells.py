"""Cells of a grid are found again by what decides their result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clp_plugin.store.again import is_due
from clp_plugin.store.cells import CellKey, CellStore
from clp_plugin.store.outcomes import Outcome
from clp_plugin.types import Provenance

KEY = CellKey("0" * 64, "clp", "clp_plugin", {"u": 3.0, "layers": "fused"}, 0, "defender", None, "1.0")


def outcome(**more: Any) -> Outcome:
    return Outcome(method="clp", command="", seed=0, device="cpu", seconds=1, **more)


@pytest.mark.parametrize(
    "change",
    [
        {"record": "1" * 64}, {"method": "bnp"}, {"implementation": "backdoorbench"}, {"options": {"u": 2.0}}, {"seed": 1},
        {"protocol": "oracle"}, {"n_budget": 10}, {"version": "1.1"},
    ],
)  # fmt: skip
def test_whatever_decides_the_result_makes_another_cell(change: dict[str, Any]) -> None:
    assert replace(KEY, **change).name != KEY.name


def test_the_order_of_options_and_tuples_for_lists_make_none() -> None:
    assert replace(KEY, options={"layers": "fused", "u": 3.0}).name == KEY.name
    assert replace(KEY, options={"b": (1, 2)}).name == replace(KEY, options={"b": [1, 2]}).name


def test_a_name_says_what_people_look_for() -> None:
    assert KEY.name.startswith("clp-seed0-")
    assert replace(KEY, implementation="backdoorbench").name.startswith("backdoorbench-clp-seed0-")


def test_what_was_saved_is_found_again_and_replaced(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    assert store.stored(KEY) is None
    first, second = outcome(status="failed", error="no"), outcome()
    store.save(KEY, first)
    assert store.stored(KEY) == first
    store.save(KEY, second)
    assert store.stored(KEY) == second
    assert store.stored(replace(KEY, seed=1)) is None


@pytest.mark.parametrize(
    ("again", "missing", "failed", "done"),
    [
        ("only-missing", True, False, False), ("failed", True, True, False), ("all", True, True, True),
        ("never", False, False, False),
    ],
)  # fmt: skip
def test_what_is_run_again(again: Any, missing: bool, failed: bool, done: bool) -> None:
    found = [is_due(earlier, again) for earlier in (None, outcome(status="failed", error="no"), outcome())]
    assert found == [missing, failed, done]


def test_what_a_record_is_is_remembered_and_only_a_shortcut(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    origin = Provenance("builtin", "runs/a", "0", "badnets", "cifar10", "builtin:resnet18", 0.1, 0, (0.5,), (0.5,))
    assert store.known("abc") is None
    store.remember("abc", origin)
    known = store.known("abc")
    assert known is not None
    assert (known["dataset"], known["toolbox"]) == ("cifar10", "builtin")
    (tmp_path / "known" / "abc.json").write_text("{")
    assert store.known("abc") is None
