"""Outcomes from another machine: each joins once, beside the record that it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import bench, refused

from clp_plugin.store.joining import guests
from clp_plugin.store.outcomes import Outcome, load_outcomes, save_outcome


def outcome(
    method: str = "clp", sha256: str = "a" * 64, path: str = "here/a", acc: float = 0.9, **more: Any
) -> Outcome:
    before = {"acc": acc, "asr": 0.9, "ra": 0.0, "base_rate": 0.01, "n_clean": 100, "n_triggered": 90}
    facts = {
        "method": method, "command": "", "seed": 0, "device": "cpu", "seconds": 1, "before": before,
        "after": {**before, "asr": 0.0}, "provenance": {"sha256": sha256, "path": path},
    }  # fmt: skip
    return Outcome.model_validate({**facts, **more})


def test_a_guest_is_of_our_record_if_the_weights_are_the_same() -> None:
    [guest] = guests([outcome("anp", path="there/b")], [outcome()], source="mail")
    assert guest.is_new
    assert guest.outcome.provenance["path"] == "here/a"
    assert guest.outcome.log["added"] == {"from": "mail", "path": "there/b"}
    assert guest.note == "of a record that is here"


def test_a_guest_of_an_unknown_record_keeps_its_own() -> None:
    [guest] = guests([outcome(sha256="b" * 64, path="there/b")], [outcome()], source="mail")
    assert guest.is_new
    assert guest.outcome.provenance["path"] == "there/b"
    assert guest.note == "no outcome here is of this record"


def test_a_run_that_is_here_does_not_join_nor_one_that_came_twice() -> None:
    found = guests([outcome(path="there/b"), outcome("ft"), outcome("ft")], [outcome()], source="mail")
    assert [guest.is_new for guest in found] == [False, True, False]


def test_another_judgement_of_the_same_weights_is_told() -> None:
    [guest] = guests([outcome("anp", acc=0.8)], [outcome()], source="mail")
    assert "judged on other images" in guest.note
    assert "ACC 80.00 there and 90.00 here" in guest.note


def test_the_command_adds_all_or_nothing_and_once(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    save_outcome(outcome(), here / "cells" / "clp.json")
    for name in ("clp", "anp"):
        save_outcome(outcome(name, path="/else/b"), there / f"{name}.json")
    (there / "bad.json").write_text('{"schema_version": 1, "protocol": "defender"}')
    assert "bad.json is not an outcome" in refused("leaderboard", "add", there, "--to", here)
    assert len(load_outcomes(here)) == 1
    (there / "bad.json").unlink()
    found = bench("leaderboard", "add", there, "--to", here, "--json").json
    assert found["added"] == 1
    assert [row["is_new"] for row in found["outcomes"]] == [True, False]
    assert bench("leaderboard", "add", there / "anp.json", "--to", here, "--json").json["added"] == 0
    assert sorted(o.provenance["path"] for o in load_outcomes(here)) == ["here/a", "here/a"]


@pytest.mark.parametrize("provenance", [{}, {"path": "a"}])
def test_an_outcome_of_nobody_knows_what_is_refused(tmp_path: Path, provenance: dict[str, str]) -> None:
    save_outcome(outcome(provenance=provenance), tmp_path / "a.json")
    assert "expected provenance.sha256" in refused("leaderboard", "add", tmp_path / "a.json", "--to", tmp_path / "here")
