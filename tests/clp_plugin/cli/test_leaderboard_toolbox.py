"""bench leaderboard run with a toolbox's own methods: beside ours, and in a place of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import bench
from fake_toolbox import FakeToolbox, fake_registry

from clp_plugin.store.outcomes import load_outcomes


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(tmp_path / "config.yaml"))
    return fake_registry(tmp_path)


@pytest.fixture
def record(registry: Path) -> Path:
    return registry.parent / "checkout" / "record" / "eins"


def test_a_grid_runs_the_toolboxs_own_method_beside_ours_each_seed_in_a_place_of_its_own(
    registry: Path, record: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [
        "--record",
        record,
        "--registry",
        registry,
        "--out",
        out,
        "--workers",
        0,
        "--device",
        "cpu",
        "--seeds",
        "0,1",
    ]
    assert bench("leaderboard", "run", *given, "--method", "clp", "--method", "fakebench:anp:epochs=3").code == 0
    found = load_outcomes(out / "cells")
    assert sorted((each.method, each.implementation, each.seed) for each in found) == [
        ("anp", "fakebench", 0), ("anp", "fakebench", 1), ("clp", "clp_plugin", 0), ("clp", "clp_plugin", 1),
    ]  # fmt: skip
    request = FakeToolbox.asked["request"]
    assert (request.options, request.seed, request.force) == ({"epochs": 3}, 1, True)
    assert request.destination.parent == out / "toolbox"
    cells = bench("leaderboard", "show", out, "--json").json["cells"]
    assert {(cell["implementation"], cell["reported_acc"]) for cell in cells} == {
        ("fakebench", 0.5),
        ("clp_plugin", None),
    }
    assert not (record / "clp_plugin_logs").exists()


def test_a_script_that_fails_in_a_grid_is_a_failed_cell_and_leaves_nothing_in_the_record(
    registry: Path, record: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["--record", record, "--registry", registry, "--out", out, "--workers", 0, "--device", "cpu"]
    done = bench("leaderboard", "run", *given, "--method", "fakebench:anp:do=fail", "--method", "clp")
    assert done.code == 3
    assert {each.method: each.error for each in load_outcomes(out / "cells")} == {
        "anp": "anp.py failed (exit status 1): IndexError", "clp": None,
    }  # fmt: skip
    assert sorted(path.name for path in record.iterdir()) == ["fake"]
