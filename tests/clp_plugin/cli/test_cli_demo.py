"""``bench demo``, with less of everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import DEFEND, bench

from clp_plugin.adapters.builtin import toolbox
from clp_plugin.cli.commands import demo


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = toolbox.PRESETS["demo"]
    small_one = replace(
        preset, n_train=300, n_test=60, recipe=replace(preset.recipe, epochs=1),
        model_options={"width": 8, "blocks": (1, 1)},
    )  # fmt: skip
    monkeypatch.setattr(toolbox, "PRESETS", {"demo": small_one})
    monkeypatch.setattr(demo, "SWEEP", "0:4:2")


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_demo")
def test_demo_goes_all_the_way_and_says_what_happened(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    found = bench("demo", "--out", out, "--device", "cpu", "--json").json
    assert list(found) == [*DEFEND, "rows", "pooled", "seconds_total"]
    assert [row["u"] for row in found["rows"]] == [0, 2, 4]
    figures = {p.name for p in (out / "figures").iterdir()}
    drawn = {f"{name}.{kind}" for name in ("uclc_tac", "sweep", "scores", "examples") for kind in ("png", "pdf")}
    assert figures == drawn | {"tac.csv", "correlation.csv", "sweep.csv"}
    before = {path.name: path.read_bytes() for path in (out / "figures").glob("*.csv")}
    again = bench("demo", "--out", out, "--device", "cpu")
    assert again.code == 0
    assert "using the attacked model" in again.err
    assert "CLP removed the backdoor" in again.err or "CLP did NOT do what the paper says" in again.err
    assert {path.name: path.read_bytes() for path in (out / "figures").glob("*.csv")} == before
    outcome = json.loads(Path(found["outcome"]).read_text())
    assert (outcome["before"], outcome["after"]) == (found["before"], found["after"])
