"""Which cells there are, and how they are shared out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clp_plugin.bench.grid.methods import Method
from clp_plugin.bench.grid.on_ray import RayCluster
from clp_plugin.bench.grid.plan import Cell, GridSettings, Task, cells_of, seconds_by_method, shard
from clp_plugin.errors import ConfigError
from clp_plugin.registry import load_catalogue
from clp_plugin.store.outcomes import Outcome

TASKS = [Task(Path(str(number)), (Method("clp"),), (0,)) for number in range(7)]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_all_shares_together_are_all_records_each_once(count: int) -> None:
    shares = [shard(TASKS, f"{number}/{count}") for number in range(1, count + 1)]
    assert sorted(str(task.record) for share in shares for task in share) == [str(task.record) for task in TASKS]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "-1/2", "a/b", "1/2/3"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard: expected I/N"):
        shard(TASKS, text)


def cells(*methods: Method, toolbox: str = "builtin", dataset: str = "cifar10", **settings: str) -> list[Cell]:
    task = Task(Path("r"), methods, (0, 1))
    chosen = GridSettings(Path("out"), **settings)  # type: ignore[arg-type]
    return list(cells_of(task, "0" * 64, chosen, load_catalogue(), dataset=dataset, toolbox=toolbox))


def test_a_toolboxs_own_method_has_cells_on_its_own_records_only() -> None:
    both = (Method("clp"), Method("anp", "backdoorbench"))
    assert [cell.method.name for cell in cells(*both)] == ["clp", "clp"]
    assert [cell.method.name for cell in cells(*both, toolbox="backdoorbench")] == ["clp", "clp", "anp", "anp"]


def test_the_oracle_is_asked_only_where_something_is_chosen() -> None:
    methods = (Method("ft"), Method("fp"), Method("anp", "backdoorbench"))
    chosen = cells(*methods, toolbox="backdoorbench", protocol="oracle")
    assert {(cell.method.name, cell.method.is_own) for cell in chosen} == {("fp", True)}


def test_options_that_are_usual_and_options_that_are_typed_are_the_same_cell() -> None:
    usual, typed, other = (cells(Method("clp", options=o))[0].key.name for o in ({}, {"u": 3.0}, {"u": 2.0}))
    assert usual == typed != other


def test_usual_options_depend_on_the_data_set() -> None:
    assert cells(Method("clp"))[0].key.name != cells(Method("clp"), dataset="tiny")[0].key.name


def test_times_are_means_of_what_ended_well() -> None:
    def outcome(method: str, seconds: float, **more: object) -> Outcome:
        return Outcome(method=method, command="", seed=0, device="cpu", seconds=seconds, **more)  # type: ignore[arg-type]

    stored = [outcome("clp", 1), outcome("clp", 3), outcome("ft", 9, status="failed", error="no")]
    assert seconds_by_method(stored) == {("clp", "clp_plugin"): 2}


def test_cluster_that_does_not_come_up_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out\nduring startup")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match="Ray does not start: The current node timed out during startup"):
        RayCluster().run([], GridSettings(tmp_path), lambda _: None)
