"""Where a run is stored, and when what stands there is this very run, another one, or somebody else's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clp_plugin.defenses.clp import CLP
from clp_plugin.errors import ConfigError
from clp_plugin.store.layout import OUTCOME, require_replaceable, run_folder, slug, stored_run
from clp_plugin.store.outcomes import RunFacts, save_outcome
from clp_plugin.types import Provenance

ORIGIN = Provenance(
    toolbox="fake", path="runs/a", sha256="1" * 64, attack="corner", dataset="noise", architecture="tiny",
    poison_rate=0.1, seed=0, mean=(0.5,), std=(0.5,),
)  # fmt: skip
FACTS = RunFacts("nad", {"betas": (1.0, 2.0)}, 3, "cpu", "bench defend", ORIGIN, budget="benign:500")
OTHERS = {
    "method": replace(FACTS, method="ft"),
    "implementation": replace(FACTS, implementation="backdoorbench"),
    "options": replace(FACTS, options={"betas": (1.0, 3.0)}),
    "seed": replace(FACTS, seed=4),
    "budget": replace(FACTS, budget="benign:100"),
    "protocol": replace(FACTS, protocol="oracle"),
    "model": replace(FACTS, provenance=replace(ORIGIN, sha256="2" * 64)),
}
SAME = replace(FACTS, options={"betas": [1.0, 2.0]}, device="cuda", command="", provenance=replace(ORIGIN, path="/b"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_outcome(FACTS.outcome(seconds=1.0), tmp_path / "run" / OUTCOME)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "protocol", "n_budget", "expected"),
    [
        ({"u": 3.0, "score": "paper", "pairing": "dataflow"}, "defender", None, "default-seed0"),
        ({"u": 2.5, "score": "relative"}, "defender", None, "u2.5-relative-seed0"),
        ({"u": 3}, "oracle", 50, "n50-oracle-seed0"),
        ({"path": "a/b", "flag": True}, "defender", None, "a_b-flag=True-seed0"),
        ({}, "defender", None, "default-seed0"),
    ],
)
def test_folder_name_tells_runs_apart(options: dict[str, Any], protocol: Any, n_budget: Any, expected: str) -> None:
    facts = RunFacts("clp", options, 0, "cpu", "", ORIGIN, protocol=protocol)
    assert slug(CLP(), facts, n_budget=n_budget) == expected
    assert run_folder(Path("a"), CLP(), facts, n_budget=n_budget) == Path("a/defense/clp", expected)


def test_the_very_run_is_known_again_wherever_it_runs_and_its_record_lies(stored: Path) -> None:
    assert stored_run(stored, SAME) is not None
    assert require_replaceable(stored, SAME, force=False) is True


@pytest.mark.parametrize("differing", OTHERS)
def test_a_run_that_differs_in_one_thing_is_another_and_replaced_only_with_force(stored: Path, differing: str) -> None:
    other = OTHERS[differing]
    assert stored_run(stored, other) is None
    with pytest.raises(ConfigError, match=r"holds the result of nad with betas=.*, seed 3.*--force"):
        require_replaceable(stored, other, force=False)
    assert require_replaceable(stored, other, force=True) is False


def test_a_failure_is_no_result_to_be_kept(tmp_path: Path) -> None:
    save_outcome(FACTS.outcome(error="diverged"), tmp_path / OUTCOME)
    assert stored_run(tmp_path, FACTS) is None
    assert require_replaceable(tmp_path, OTHERS["seed"], force=False) is False


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for force in (False, True):
        with pytest.raises(ConfigError, match="did not write"):
            require_replaceable(tmp_path, FACTS, force=force)
        with pytest.raises(ConfigError, match="is a file"):
            require_replaceable(tmp_path / "thesis.tex", FACTS, force=force)
    assert stored_run(tmp_path, FACTS) is None
    assert require_replaceable(tmp_path / "new", FACTS, force=False) is False
