"""Records down, methods across: the table, its summary and the figure."""

from __future__ import annotations

from typing import Any

import pytest

from clp_plugin.errors import ConfigError
from clp_plugin.reports.matrix import matrix_figure, matrix_markdown
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome


def outcome(record: str, method: str, seed: int, acc: float, asr: float, **more: Any) -> Outcome:
    before = {"acc": 0.98, "asr": 0.9 + 0.1 * seed, "ra": 0.0, "base_rate": 0.01, "n_clean": 10, "n_triggered": 9}
    facts: dict[str, Any] = {
        "method": method, "command": "", "seed": seed, "device": "cpu", "seconds": 1.5 + seed, "before": before,
        "after": {**before, "acc": acc, "asr": asr, "ra": 0.5}, "der": 0.75,
        "provenance": {"path": f"runs/{record}-seed{seed}", "attack": record.partition("-")[0], "sha256": f"{record}{seed}"},
    }  # fmt: skip
    return Outcome.model_validate({**facts, **more})


OUTCOMES = [
    outcome("badnets", "clp", 0, 0.9, 0.0),
    outcome("badnets", "clp", 1, 0.8, 0.5),
    outcome("badnets", "ft", 0, 0.7, 0.25),
    outcome("badnets-all", "clp", 0, 0.6, 0.125, protocol="oracle"),
    outcome("badnets-all", "ft", 0, 0.0, 0.0, after=None, before=None, der=None, status="failed", error="boom"),
]


def test_the_table_holds_means_over_seeds_and_dashes_where_nothing_was_run() -> None:
    page = matrix_markdown(outcomes_frame(OUTCOMES))
    lines = page.splitlines()
    assert lines[2] == "| attack | before | base | clp | ft | clp (oracle) |"
    assert lines[4] == "| badnets | 98.0 / 95.0 | 1.0 | 85.0 / 25.0 | 70.0 / 25.0 | - |"
    assert lines[5] == "| badnets-all | 98.0 / 90.0 | 1.0 | - | - | 60.0 / 12.5 |"
    assert "| badnets | 50 | 0 | - |" in page  # range over seeds
    assert "| badnets | 2.0 | 1.5 | - |" in page  # seconds
    assert "Failed: ft on badnets-all-seed0: boom" in page


def test_a_model_counts_once_however_its_folder_was_called() -> None:
    here = outcome("a", "clp", 0, 0.9, 0.0)
    there = outcome("a", "ft", 0, 0.9, 0.0).model_copy(
        update={"provenance": {**here.provenance, "path": "/elsewhere/a-seed0"}}
    )
    page = matrix_markdown(outcomes_frame([here, there, outcome("a", "clp", 1, 0.9, 0.0)]))
    assert (
        "| a | 98.0 / 95.0 | 1.0 | 90.0 / 0.0 | 90.0 / 0.0 |" in page
    )  # not weighted towards the seed with two methods


def test_it_says_how_far_the_toolboxs_own_numbers_are_from_ours() -> None:
    told = outcome("a", "ft", 0, 0.9, 0.0, implementation="backdoorbench", reported={"acc": 0.7, "asr": 0.0})
    page = matrix_markdown(outcomes_frame([told, outcome("a", "clp", 0, 0.9, 0.0)]))
    assert "Of 1 runs a toolbox's script told ACC, ASR or RA of its own: at most 2 test images apart" in page
    assert "told" not in matrix_markdown(outcomes_frame(OUTCOMES))


def test_models_of_one_name_in_two_places_stay_apart() -> None:
    here = outcome("a", "clp", 0, 0.9, 0.0)
    mine, yours = (
        here.model_copy(update={"provenance": {"path": f"/{whose}/badnet_0_1", "sha256": whose}})
        for whose in ("me", "you")
    )
    page = matrix_markdown(outcomes_frame([mine, yours]))
    assert "| /me/badnet_0_1 | 98.0 / 90.0 |" in page
    assert "| /you/badnet_0_1 | 98.0 / 90.0 |" in page


def test_the_summary_counts_records_where_the_backdoor_is_gone_for_little_accuracy() -> None:
    never = {"acc": 0.98, "ra": 0.0, "n_clean": 10, "n_triggered": 9}
    outcomes = [
        outcome("a", "clp", 0, 0.93, 0.1),  # both at their limits: 0.98 - 0.05, and 10 %
        outcome("b", "clp", 0, 0.92, 0.0),  # too dear
        outcome("c", "clp", 0, 0.98, 0.11),  # still there
        outcome("a", "ft", 0, 0.97, 0.04),
        outcome(
            "d", "ft", 0, 0.97, 0.04, before={**never, "asr": 0.05, "base_rate": 0.01}
        ),  # there was nothing to remove
    ]
    page = matrix_markdown(outcomes_frame(outcomes))
    assert "| method | removed | mean ACC % | mean ASR % | mean DER |" in page
    assert "| clp | 1 of 3 | 94.3 | 7.0 | 0.75 |" in page
    assert "| ft | 1 of 1 | 97.0 | 4.0 | 0.75 |" in page


def test_the_figure_shows_the_same_numbers() -> None:
    figure = matrix_figure(outcomes_frame(OUTCOMES))
    acc, asr, der = figure.axes
    assert [label.get_text() for label in acc.get_xticklabels()] == ["before", "clp", "ft", "clp (oracle)"]
    assert [text.get_text() for text in asr.texts] == ["95", "25", "25", "-", "90", "-", "-", "12"]
    assert [text.get_text() for text in der.texts] == ["75", "75", "-", "-", "-", "75"]


def test_nothing_to_show_is_told() -> None:
    for page in (matrix_markdown, matrix_figure):
        with pytest.raises(ConfigError, match="at least one outcome with metrics"):
            page(outcomes_frame(OUTCOMES[-1:]))
