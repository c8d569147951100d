"""The study of the surrogate goes on where it stopped, and its tables say what the methods do behind the gate and past it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clp_plugin.imports import import_file

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "surrogate.py"


def row(name: str, *, accepted: bool, asr: float, target: int = 0, true_target: int | None = 0) -> dict[str, Any]:
    """A record whose rounds take all of the ASR and a point of ACC."""
    before = {"acc": 0.9, "asr": asr, "ra": 1 - asr, "der": 0.5, "pruned": 0, "u": None, "seconds": 0.0}
    after = {"acc": 0.89, "asr": 0.0, "ra": 0.8, "der": 0.5 + (asr - 0.01) / 2, "pruned": 4, "u": 2.0, "seconds": 9.0}
    return {
        "record": f"/runs/{name}", "seed": 0, "images": None, "kind": "all_to_one", "true_target": true_target,
        "base_rate": 0.0, "target": target, "accepted": accepted, "patch": {"size": 3, "success": 0.9},
        "methods": {"before": before, **dict.fromkeys(("u=3", "best u (oracle)", "u auto", "rounds"), after)},
    }  # fmt: skip


def test_a_study_that_was_stopped_goes_on_and_repeats_only_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, ran = import_file(STUDY), []

    def study(record: SimpleNamespace, **_options: object) -> dict[str, Any]:
        ran.append(record.name)
        if record.name == "b" and ran.count("b") == 1:
            raise RuntimeError("no memory")
        return {"finding": "x", "size": float("inf")}

    monkeypatch.setattr(module, "open_record", lambda folder, **_options: SimpleNamespace(name=folder.name))
    monkeypatch.setattr(module, "study", study)
    out, options = tmp_path / "new" / "study.jsonl", {"data": None, "device": "cpu", "seed": 0, "images": None}
    module.run([tmp_path / "a", tmp_path / "b"], out, **options)
    with out.open("ab") as file:
        file.write(b'{"record": "cut sho')  # a crash in the middle of a line
    module.run([tmp_path / "a", tmp_path / "b", tmp_path / "c"], out, **options)
    assert ran == ["a", "b", "b", "c"]
    rows = module.read_rows(out)
    assert [Path(one["record"]).name for one in rows] == ["a", "b", "c"]
    assert all("error" not in one and one["size"] is None for one in rows)
    module.run([tmp_path / "a"], out, **{**options, "seed": 1})
    assert ran[-1] == "a"  # another seed is another line


def test_behind_a_gate_that_is_not_passed_the_gated_methods_change_nothing() -> None:
    module = import_file(STUDY)
    told = module.tables([row("hit", accepted=True, asr=1.0), row("miss", accepted=False, asr=1.0, target=3)])
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in told.splitlines() if line.startswith("|")}
    assert cells["hit"][5] == "89.0 / 0.0 / 80.0 (4)"
    assert cells["miss"][5] == "90.0 / 100.0 / 0.0 (0)"
    assert cells["miss"][2] == "89.0 / 0.0 / 80.0 (4)"  # u = 3 has no gate
    assert cells["miss"][6] == "3 (true: 0)"
    assert cells["mean DER"][5] == f"{(0.995 + 0.5) / 2:.3f}"
    assert "Class named right: 1 of 2 (one target); gate passed: 1 of 2, with the right class: 1 of 2" in told
    assert "Mean DER past the gate: u=3 0.995, best u (oracle) 0.995, u auto 0.995, rounds 0.995" in told


def test_networks_without_a_working_backdoor_stand_apart_with_the_false_alarms() -> None:
    module = import_file(STUDY)
    rows = [
        row("clean", accepted=False, asr=0.01),
        row("alarm", accepted=True, asr=0.01),
        row("all", accepted=True, asr=1.0, true_target=None),
    ]
    told = module.tables([*rows, {"record": "/runs/broken", "seed": 0, "images": None, "error": "no BatchNorm"}])
    assert "**2 networks without a working backdoor**" in told
    assert "False alarms of the gate: 1 of 2. Mean loss of ACC past it: u=3 1.0" in told
    assert "0 (true: all_to_one)" in told  # no class to name
    assert "Class named right: 0 of 0 (one target)" in told
    assert "failed: /runs/broken: no BatchNorm" in told
