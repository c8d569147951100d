"""What is done for the cells of one record, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting import calls_counted
from grids import outcomes, tiny_record

from clp_plugin.bench.grid.events import Closed, Event, Started
from clp_plugin.bench.grid.methods import Method
from clp_plugin.bench.grid.plan import GridSettings, Task, cells_of
from clp_plugin.bench.grid.work import work
from clp_plugin.evaluation.metrics import judge
from clp_plugin.registry import load_catalogue
from clp_plugin.store.content import record_content


def test_nothing_is_judged_for_a_cell_that_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GridSettings(tmp_path / "out")
    task = Task(tiny_record(tmp_path / "record"), (Method("clp"),), (0,))
    content = record_content(task.record)
    [cell] = cells_of(task, content, settings, load_catalogue(), dataset="digits", toolbox="builtin")
    counts = calls_counted(monkeypatch, judge)
    told: list[Event] = []
    work(task, settings, told.append, doomed={cell.key.name: "it killed two workers"})
    assert counts["judge"] == 0
    assert [(outcome.status, outcome.error) for outcome in outcomes(tmp_path / "out")] == [
        ("failed", "it killed two workers")
    ]
    assert [event.doing for event in told if isinstance(event, Started)] == ["opening", cell.label]
    assert told[-1] == Closed(str(task.record))
