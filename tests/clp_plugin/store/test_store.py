"""Outcomes on disk: round trip, what is refused, and the table of them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from clp_plugin.errors import ConfigError
from clp_plugin.store.frame import outcomes_frame
from clp_plugin.store.outcomes import Outcome, load_outcome, load_outcomes, save_outcome, versions
from clp_plugin.types import Mask, Metrics, Provenance

BEFORE = Metrics(acc=0.99, asr=1.0, ra=0.0, base_rate=0.01, n_clean=2000, n_triggered=1800)
AFTER = Metrics(acc=0.97, asr=0.05, ra=0.9, base_rate=0.01, n_clean=2000, n_triggered=1800)
PROVENANCE = Provenance(
    toolbox="builtin", path="runs/x", sha256="ab", attack="badnets", dataset="digits", architecture="resnet18",
    poison_rate=0.1, seed=3, mean=(0.5,), std=(0.2,), architecture_options={"width": 16},
)  # fmt: skip
MASK = Mask({"conv1": np.array([True, False, True]), "conv2": np.array([False])})


def outcome(**changes: Any) -> Outcome:
    facts: dict[str, Any] = {
        "method": "clp", "options": {"u": 3.0}, "command": "bench defend", "seed": 3, "device": "cpu", "seconds": 0.5,
        "provenance": PROVENANCE.to_json(), "before": BEFORE.to_json(), "after": AFTER.to_json(), "der": 0.965,
        "mask": MASK.to_json(), "weights": "clp.safetensors", "log": {"layers": 2},
    }  # fmt: skip
    return Outcome(**{**facts, **changes})


def test_outcome_survives_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "clp.json"
    save_outcome(outcome(), path)
    loaded = load_outcome(path)
    assert loaded.before is not None
    assert loaded.mask is not None
    assert Metrics(**loaded.before.model_dump()) == BEFORE
    assert Mask.from_json(loaded.mask) == MASK
    assert loaded.pruned == 2
    assert loaded.provenance["architecture_options"] == {"width": 16}
    save_outcome(loaded, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_an_all_to_all_attack_is_another_one_in_the_table() -> None:
    def of(sha256: str, **target: str) -> Outcome:
        return outcome(provenance={**PROVENANCE.to_json(), "sha256": sha256, **target})

    frame = outcomes_frame(
        [
            of("one", target="target 0"),
            of("many", target="all to all"),
            of("many"),  # stored before outcomes said what the attacker wants
            of("far", target="all to all, shift 2"),
            of("unknown"),
        ]
    )
    assert frame["attack"].tolist() == [
        "badnets", "badnets (all to all)", "badnets (all to all)", "badnets (all to all, shift 2)", "badnets",
    ]  # fmt: skip


def test_images_on_which_a_toolboxs_own_numbers_and_ours_differ_are_counted() -> None:
    told = {"acc": AFTER.acc + 3 / 2000, "asr": AFTER.asr, "ra": AFTER.ra - 7 / 1800}
    assert outcome(reported=told).images_apart == {"acc": 3, "asr": 0, "ra": 7}
    assert outcome(reported={"acc": AFTER.acc}).images_apart == {"acc": 0}
    nothing_triggered = {**AFTER.to_json(), "asr": None, "n_triggered": 0}
    assert outcome(reported=told, after=nothing_triggered).images_apart == {"acc": 3, "ra": 0}
    failed = outcome(reported=None, after=None, der=None, status="failed", error="crashed")
    assert outcome().images_apart == failed.images_apart == {}
    frame = outcomes_frame([outcome(reported=told), outcome(), failed])
    assert frame["apart"].astype(object).where(frame["apart"].notna(), None).tolist() == [7, None, None]


def test_outcome_says_when_and_with_what_it_was_made() -> None:
    made = outcome()
    assert datetime.fromisoformat(made.created).utcoffset() is not None
    assert made.schema_version == 1
    assert {"python", "clp_plugin", "torch", "numpy"} <= set(made.versions)
    assert made.versions["numpy"] == np.__version__
    assert versions() == made.versions


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_metric_that_could_not_be_measured_is_null(tmp_path: Path, nothing: float | None) -> None:
    path = tmp_path / "x.json"
    save_outcome(outcome(after={**AFTER.to_json(), "asr": nothing, "ra": None, "n_triggered": 0}), path)
    loaded = load_outcome(path)
    assert loaded.after is not None
    assert loaded.after.asr is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": {**BEFORE.to_json(), "acc": 99.0}}, "before.acc"),  # percent where a fraction belongs
        ({"status": "failed"}, "needs its error"),
        ({"error": "boom"}, "needs its error"),
        ({"protocol": "honest"}, "protocol"),
        ({"seconds": -1}, "seconds"),
        ({"extra": 1}, "extra"),
    ],
)
def test_impossible_outcome_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        outcome(**change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"x\.json is not JSON"),
        ("[]", r"is not an outcome: expected a JSON object with schema_version 1"),
        ('{"a": 1}', r"is not an outcome: expected a JSON object"),
        ('{"schema_version": 99}', r"has schema version 99, this clp_plugin reads 1; run the command again"),
        ('{"schema_version": 1}', r"is not an outcome: method: Field required"),
    ],
)
def test_file_of_another_kind_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_outcome(path)


def test_missing_file_and_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*x\.json"):
        load_outcome(tmp_path / "x.json")
    with pytest.raises(ConfigError, match=r"there is no folder"):
        load_outcomes(tmp_path / "nowhere")


def test_folder_gives_its_outcomes_in_order_and_no_other_json(tmp_path: Path) -> None:
    save_outcome(outcome(seed=2), tmp_path / "b" / "clp.json")
    save_outcome(outcome(seed=1), tmp_path / "a" / "clp.json")
    (tmp_path / "record.json").write_text('{"attack": "badnets"}')
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe{")
    assert [found.seed for found in load_outcomes(tmp_path)] == [1, 2]


@pytest.mark.parametrize("hidden", [".default.clp-new", ".default.clp-old", "clp/.ipynb_checkpoints"])
def test_what_is_hidden_is_no_result(tmp_path: Path, hidden: str) -> None:
    save_outcome(outcome(seed=1), tmp_path / "clp" / "default" / "outcome.json")
    save_outcome(outcome(seed=2), tmp_path / hidden / "outcome.json")
    assert [found.seed for found in load_outcomes(tmp_path)] == [1]


def test_unreadable_outcome_in_a_folder_is_an_error_and_not_a_gap(tmp_path: Path) -> None:
    save_outcome(outcome(), tmp_path / "clp.json")
    content = json.loads((tmp_path / "clp.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({**content, "schema_version": 0}))
    with pytest.raises(ConfigError, match=r"old\.json has schema version 0"):
        load_outcomes(tmp_path)


def test_table_has_one_row_an_outcome_and_keeps_fractions() -> None:
    failed = outcome(status="failed", error="out of memory", after=None, der=None, mask=None)
    frame = outcomes_frame([outcome(), failed])
    assert frame["after_asr"].iloc[0] == 0.05
    assert frame["after_asr"].isna().tolist() == [False, True]
    assert frame["pruned"].iloc[0] == 2
    assert frame["options"].iloc[0] == '{"u": 3.0}'
    assert frame[["attack", "architecture", "record"]].iloc[1].tolist() == ["badnets", "resnet18", "runs/x"]
    assert frame["error"].iloc[1] == "out of memory"
    assert frame["error"].isna().tolist() == [True, False]


def test_table_of_nothing_has_the_same_columns() -> None:
    assert list(outcomes_frame([]).columns) == list(outcomes_frame([outcome()]).columns)
    assert outcomes_frame([]).empty
