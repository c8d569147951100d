"""bench compare: collects what was run, whoever's code it was, and draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import bench, refused
from csv_tables import csv_table

from clp_plugin.errors import ConfigError
from clp_plugin.reports.comparison import comparison_figure, correlation_figure
from clp_plugin.reports.labels import method_label
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome, save_outcome


def outcome(record: Path, method: str = "clp", **changes: Any) -> Outcome:
    before = {"acc": 0.9, "asr": 0.8, "ra": 0.1, "base_rate": 0.01, "n_clean": 100, "n_triggered": 90}
    facts: dict[str, Any] = {
        "method": method, "command": "", "seed": 0, "device": "cpu", "seconds": 2.0, "before": before,
        "after": {**before, "acc": 0.85, "asr": 0.05}, "der": 0.85,
        "provenance": {"path": str(record), "attack": "badnet", "architecture": "x:preactresnet18", "sha256": record.name},
    }  # fmt: skip
    return Outcome.model_validate({**facts, **changes})


def stored(record: Path, method: str, **changes: Any) -> None:
    save_outcome(outcome(record, method, **changes), record / "defense" / method / "outcome.json")


@pytest.fixture
def records(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "eins", tmp_path / "zwei ä"]
    for path in paths:
        stored(path, "clp")
        stored(path, "anp", implementation="backdoorbench", protocol="oracle")
    return paths


def test_tables_hold_every_outcome_of_every_record(records: list[Path], tmp_path: Path) -> None:
    options = [part for path in records for part in ("--record", path)]
    found = bench("compare", *options, "--out", tmp_path / "out", "--json").json
    assert [(row["record"], row["method"]) for row in found["rows"]] == [
        ("eins", "anp (backdoorbench, oracle)"), ("eins", "clp"), ("zwei ä", "anp (backdoorbench, oracle)"), ("zwei ä", "clp"),
    ]  # fmt: skip
    assert found["uclc_tac"] == []
    frame = csv_table(tmp_path / "out" / "comparison.csv")
    assert frame["after_asr"].tolist() == [0.05] * 4
    page = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert page.count("\n") == 6
    assert "85.0" in page
    files = {f"comparison.{end}" for end in ("csv", "md", "png", "pdf")} | {
        f"matrix.{end}" for end in ("md", "png", "pdf")
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    matrix = (tmp_path / "out" / "matrix.md").read_text(encoding="utf-8")
    assert "| attack | before | base | anp (backdoorbench, oracle) | clp |" in matrix
    assert "| zwei ä | 90.0 / 80.0 | 1.0 | 85.0 / 5.0 | 85.0 / 5.0 |" in matrix
    assert "Range of ASR" not in matrix


def test_one_record_needs_no_matrix(records: list[Path], tmp_path: Path) -> None:
    bench("compare", "--record", records[0], "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "matrix.md").exists()


def test_records_with_a_correlation_get_a_panel(records: list[Path], tmp_path: Path) -> None:
    folder = records[0] / "analysis" / "correlate-paper-reshaped-l2"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    table = {
        "layer": ["a"] * 20,
        "channel": range(20),
        "sigma": rng.random(20),
        "tac": rng.random(20),
        "pruned": [False] * 20,
    }
    pd.DataFrame(table).to_csv(folder / "tac.csv", index=False)
    options = [part for path in records for part in ("--record", path)]
    result = bench("compare", *options, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "uclc_tac.png").is_file()
    assert "no UCLC-TAC panel for zwei ä" in result.err


def test_a_record_on_which_nothing_ran_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = refused("compare", "--record", tmp_path / "empty", "--out", tmp_path / "out")
    assert "empty: expected outcomes below" in said
    assert "bench defend" in said
    assert not (tmp_path / "out").exists()


def test_the_figure_has_a_panel_a_record_and_a_row_a_method(records: list[Path]) -> None:
    several = [outcome(records[0]), outcome(records[0], seed=1), outcome(records[0], "ft"), outcome(records[1])]
    figure = comparison_figure(outcomes_frame([*several, outcome(records[1], "nad", after=None, der=None)]))
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["clp", "ft"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["clp"]
    acc, asr = (np.asarray(drawn.get_offsets()) for drawn in first.collections)
    assert acc.tolist() == [[85.0, 0.0], [85.0, 0.0], [85.0, 1.0]]
    assert asr[:, 0].tolist() == [5.0] * 3
    assert [line.get_xdata()[0] for line in first.lines] == pytest.approx([90.0, 80.0])
    assert "DER 0.85   2 s" in [text.get_text() for text in first.texts]
    with pytest.raises(ConfigError, match="at least one outcome with metrics"):
        comparison_figure(outcomes_frame([]))


def test_the_correlation_is_that_of_channels_standardized_within_layers() -> None:
    rng = np.random.default_rng(1)
    layers = {"a": (rng.random(30), 1.0), "b": (rng.random(50), 1000.0)}
    table = pd.concat(
        pd.DataFrame({"layer": name, "sigma": sigma, "tac": scale * sigma, "pruned": sigma > 0.9})
        for name, (sigma, scale) in layers.items()
    )
    flat = pd.DataFrame({"layer": "flat", "sigma": [1.0] * 5, "tac": range(5), "pruned": [True] * 5})
    figure = correlation_figure({"r": pd.concat([table, flat])})
    assert figure.axes[0].get_title() == f"r\nr = 1.00, {int(table['pruned'].sum())} pruned"
    with pytest.raises(ConfigError, match="found none"):
        correlation_figure({})


def test_methods_are_named_by_whose_code_ran_and_how_parameters_were_chosen() -> None:
    assert method_label("clp", "clp_plugin", "defender") == "clp"
    assert method_label("clp", "backdoorbench", "defender") == "clp (backdoorbench)"
    assert method_label("fp", "clp_plugin", "oracle") == "fp (oracle)"


def test_outcomes_remember_what_the_script_said_itself(tmp_path: Path) -> None:
    stored(tmp_path, "ft", implementation="backdoorbench", reported={"acc": 0.5})
    content = json.loads((tmp_path / "defense" / "ft" / "outcome.json").read_text())
    assert content["reported"] == {"acc": 0.5}
    assert content["implementation"] == "backdoorbench"
