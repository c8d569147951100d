"""The study of the surrogate goes on where it stopped; its tables and figures are right on lines whose answers are known."""

from __future__ import annotations

import base64
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planted import CHECKERBOARD, SHAPE, TARGET, Planted

from clp_plugin import record_from
from clp_plugin.files.atomic import finite
from clp_plugin.surrogate.images import dead_leaves

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "surrogate"
NAMES = ("lines", "layout", "gates", "gate_tables", "tables", "figures", "study")


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    """The scripts, which find each other as they do when they are run: by the folder that they lie in."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


def row(
    name: str, *, accepted: bool, asr: float, target: int = 0, true_target: int | None = 0, half: str = "held-out",
    architecture: str = "resnet20", success: float = 0.9, size: int = 3, attack: str = "badnets",
) -> dict[str, Any]:  # fmt: skip
    """A record whose repairs take all of the ASR and a point of ACC; a third of the way for the candidates of u."""
    before = {"acc": 0.9, "asr": asr, "ra": 1 - asr, "der": 0.5, "pruned": 0, "seconds": None}
    after = {"acc": 0.89, "asr": 0.0, "ra": 0.8, "der": 0.5 + (max(asr, 0.02) - 0.01) / 2, "pruned": 4, "seconds": 9.0}
    names = ("u=3", "u=3, relative", "u=3, lone convs too", "best u (oracle)", "u auto", "rounds", "NAD")
    tried = [{"success": s, "asr": s * asr, "u": u} for s, u in ((success, None), (success / 3, 2.0), (0.0, 1.0))]
    return {
        "record": f"/runs/{name}", "seed": 0, "images": None, "half": half, "kind": "all_to_one", "attack": attack,
        "true_target": true_target, "base_rate": 0.0, "target": target, "accepted": accepted, "dataset": "digits",
        "architecture": f"builtin:{architecture}", "poison_rate": 0.1 if asr > 0.1 else 0.0,
        "patch": {"size": size, "success": success}, "pattern": {"norm": 2.0}, "rival": None,
        "losses": {"0": 0.1, "1": 3.0, "2": 4.0}, "gate": {"size": 3, "success": 0.8},
        "methods": {"before": before, **dict.fromkeys(names, after)}, "not_run": {"EP": "no poisoned images"},
        "curve": tried, "rounds": [{"before": success, "after": 0.1, "asr": 0.0}],
        "pictures": dict.fromkeys(("clean", "triggered", "surrogate"), png(np.zeros((8, 8, 3), np.uint8))),
    }  # fmt: skip


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def cells(markdown: str, first: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    (line, *_) = (line for line in markdown.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_study_that_was_stopped_goes_on_and_repeats_only_what_failed(
    tmp_path: Path, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, ran = modules["study"], []

    def measure(record: SimpleNamespace, **_options: object) -> dict[str, Any]:
        ran.append(record.name)
        if record.name == "b" and ran.count("b") == 1:
            raise RuntimeError("no memory")
        return {"finding": "x", "size": float("inf")}

    monkeypatch.setattr(study, "open_record", lambda folder, **_options: SimpleNamespace(name=folder.name))
    monkeypatch.setattr(study, "study", measure)
    out = tmp_path / "new" / "study.jsonl"
    options = {"data": None, "device": "cpu", "seed": 0, "images": None, "half": "held-out"}
    study.run([tmp_path / "a", tmp_path / "b"], out, **options)
    with out.open("ab") as file:
        file.write(b'{"record": "cut sho')  # a crash in the middle of a line
    study.run([tmp_path / "a", tmp_path / "b", tmp_path / "c"], out, **options)
    assert ran == ["a", "b", "b", "c"]
    rows = modules["lines"].read_rows(out)
    assert [Path(one["record"]).name for one in rows] == ["a", "b", "c"]
    assert all("error" not in one and one["size"] is None and one["half"] == "held-out" for one in rows)
    study.run([tmp_path / "a"], out, **{**options, "half": "development"})
    assert ran[-1] == "c"  # no record is measured for both halves
    study.run([tmp_path / "a"], out, **{**options, "seed": 1})
    assert ran[-1] == "a"


def test_a_line_holds_what_each_method_did_to_a_planted_backdoor_and_the_pictures(
    modules: dict[str, ModuleType],
) -> None:
    model = Planted(backdoor=True)
    pixels = (200 * dead_leaves(30, SHAPE, seed=3)).round().byte().numpy()
    for k in range(3):
        pixels[k::3, k] += 55  # a class is the brightest colour
    labels = model(torch.from_numpy(pixels) / 255).argmax(1).numpy()

    def trigger(images: np.ndarray) -> np.ndarray:
        changed = images.copy()
        changed[:, :, 9:12, 2:5] = 255 * CHECKERBOARD.byte().numpy()
        return changed

    record = record_from(model, pixels, labels, trigger=trigger, target=TARGET)
    line = json.loads(json.dumps(finite(modules["study"].study(record, device="cpu", seed=0))))
    methods = line["methods"]
    assert (line["target"], line["accepted"]) == (TARGET, True)
    assert methods["before"]["acc"] == methods["before"]["asr"] == 1.0
    assert methods["u=3"]["asr"] == 1.0  # no channel of six is three standard deviations above their mean
    assert methods["best u (oracle)"]["asr"] < 0.2
    assert methods["rounds"]["asr"] == line["rounds"][-1]["asr"] < 0.2
    assert [one["asr"] for one in line["curve"] if one["u"] == line["u"]["u auto"]] == [methods["u auto"]["asr"]]
    assert set(line["not_run"]) == {"NAD", "EP"}  # the record has neither benign nor poisoned images
    clean, triggered, surrogate = (
        np.asarray(modules["figures"]._picture(line, key)).transpose(2, 0, 1)
        for key in ("clean", "triggered", "surrogate")
    )
    (first,) = np.flatnonzero((pixels == clean).all(axis=(1, 2, 3)))
    assert labels[first] != TARGET
    assert (triggered == trigger(pixels[first : first + 1])[0]).all()
    changed = np.argwhere((surrogate != clean).any(axis=0))
    place, size = np.array(line["patch"]["place"]), line["patch"]["size"]
    assert (changed >= place).all()
    assert (changed < place + size).all()


def test_behind_a_gate_that_is_not_passed_the_gated_methods_change_nothing(modules: dict[str, ModuleType]) -> None:
    rows = [row("hit", accepted=True, asr=1.0), row("miss", accepted=False, asr=1.0, target=3, architecture="vgg")]
    told = modules["tables"].tables(rows)
    assert "### Held-out: 2 networks" in told
    assert cells(told, "rounds")[1:6] == ["2", "89.5", "50.0", "40.0", "0.748"]
    assert cells(told, "rounds")[6:] == ["-24.8 (-49.5 to +0.0)", "0.500", "1", "9.0"]
    assert cells(told, "rounds, past the gate")[2:6] == ["89.0", "0.0", "80.0", "0.995"]
    assert cells(told, "u=3")[2:6] == ["89.0", "0.0", "80.0", "0.995"]  # u = 3 has no gate
    assert "\n| EP |" not in told  # no record has what it needs
    assert "data: digits" not in told  # one group is no group
    assert cells(told, "network: vgg")[2:4] == ["0.500 (90.0 / 100.0 / 0.0)", "0.995 (89.0 / 0.0 / 80.0)"]
    passed = told[told.index("1 of them passed the gate") :]
    assert cells(passed, "rounds")[1:6] == ["1", "89.0", "0.0", "80.0", "0.995"]
    named = told[told.index("class named right") :]
    assert cells(named, "all")[1:4] == ["1 of 2 (9 to 91 %)", "1 of 1 (21 to 100 %)", "1 of 2 (9 to 91 %)"]
    assert cells(named, "vgg")[1:4] == ["0 of 1 (0 to 79 %)", "–", "1 of 1 (21 to 100 %)"]
    miss = cells(told, "miss (digits)")
    assert miss[1] == miss[5] == "90.0 / 100.0 / 0.0"
    assert miss[-3:] == ["3 (true: 0)", "3x3, 90%", "stopped"]


def test_lines_can_be_judged_by_another_gate_than_their_own(modules: dict[str, ModuleType]) -> None:
    gates = modules["gates"]
    failed = {"record": "broken", "error": "no memory"}
    rows = [
        row("hit", accepted=False, asr=1.0, size=4, success=0.9),
        row("miss", accepted=True, asr=1.0, size=5),
        failed,
    ]
    wider = gates.behind(rows, lambda one: gates.success_at(4)(one) >= 0.9)
    assert [one.get("accepted") for one in wider] == [True, False, None]
    rows[1]["losses"]["0"] = 1.5
    assert [gates.ratio_of_losses(one) for one in rows[:2]] == pytest.approx([0.1 / 3, 0.5])
    rows[0]["losses"] |= {"0": 0.0, "1": 0.0}
    assert gates.ratio_of_losses(rows[0]) == 1.0  # two classes as easy as can be: none stands out


def test_networks_without_a_working_backdoor_stand_apart_with_what_they_lose(modules: dict[str, ModuleType]) -> None:
    rows = [
        row("clean", accepted=False, asr=0.01),
        row("alarm", accepted=True, asr=0.01, target=4),
        row("all", accepted=False, asr=1.0, true_target=None),
        {"record": "/runs/broken", "seed": 0, "images": None, "error": "no BatchNorm", "half": "held-out"},
    ]
    told = modules["tables"].tables(rows)
    assert "**2 networks without one**" in told
    costs = told[told.index("without one") :]
    assert cells(costs, "alarm (digits)")[-3:] == ["4", "3x3, 90%", "passed"]  # no class is the right one
    assert cells(costs, "rounds") == ["rounds", "2", "0.5", "1.0 (alarm)", "1"]
    assert cells(costs, "rounds, past the gate")[2] == "1.0"
    heads, all_of_them = cells(costs, " | class named right"), cells(costs[costs.index("class named right") :], "all")
    assert dict(zip(heads[1:], all_of_them[1:], strict=True)) == {
        "class named right": "–", "where the gate passed": "–", "misses, one target": "–",
        "misses, all-to-all": "1 of 1 (21 to 100 %)", "false alarms, clean": "1 of 2 (9 to 91 %)",
        "false alarms, attack failed": "–",
    }  # fmt: skip
    assert "failed: /runs/broken: no BatchNorm" in told


def test_a_threshold_lies_in_the_middle_of_the_widest_gap_that_errs_least(modules: dict[str, ModuleType]) -> None:
    chosen = modules["gates"].chosen_threshold
    assert chosen([0.8, 0.9], [0.1, 0.2]) == pytest.approx(0.5)
    # A third is wrong at 0.25 as at 0.6, which lies in the wider gap.
    assert chosen([0.3, 0.8, 0.9], [0.1, 0.2, 0.4]) == pytest.approx(0.6)
    assert chosen([0.5], [0.5]) in (-np.inf, np.inf)  # nothing tells them apart


def test_leaving_an_architecture_out_uses_the_threshold_of_the_others(modules: dict[str, ModuleType]) -> None:
    gates = modules["gates"]
    rows = [
        row("a1", accepted=True, asr=1.0, success=0.9, architecture="a"),
        row("a2", accepted=True, asr=0.0, success=0.3, architecture="a"),
        row("b1", accepted=True, asr=1.0, success=0.5, architecture="b"),
        row("b2", accepted=True, asr=0.0, success=0.1, architecture="b"),
    ]
    statistic = gates.success_at(3)
    folds = {name: (threshold, errors) for name, threshold, errors in gates.leave_one_out(statistic, rows)}
    assert folds["a"] == (pytest.approx(0.3), gates.Errors(alarms=1, clean=1, misses=0, infected=1))
    assert folds["b"] == (pytest.approx(0.6), gates.Errors(alarms=0, clean=1, misses=1, infected=1))
    assert gates.separation(statistic, rows) == 1.0
    assert gates.transferred(statistic, rows[:1], rows) is None  # without a clean network nothing is chosen


def test_halves_and_left_out_architectures_reach_the_gates_table(modules: dict[str, ModuleType]) -> None:
    rows = [
        row("d1", accepted=True, asr=1.0, success=0.9, architecture="a", half="development"),
        row("d2", accepted=False, asr=0.0, success=0.5, architecture="b", half="development"),
        row("h1", accepted=False, asr=1.0, success=0.6, architecture="b"),
        row("h2", accepted=False, asr=0.0, success=0.2, architecture="a"),
        row("all", accepted=False, asr=1.0, true_target=None),  # no class to name: the gate is not judged by it
    ]
    told = modules["gate_tables"].gate_by_threshold(rows)
    stands = cells(told, "the gate as it stands")
    assert stands[2] == "0 of 1 (0 to 79 %); 1 of 1 (21 to 100 %)"
    assert stands[3] == "0 of 2 (0 to 66 %); 1 of 2 (9 to 91 %)"
    assert cells(told, "ratio of the two lowest losses")[3] == "2 of 2 (34 to 100 %); 0 of 2 (0 to 66 %)"
    by_success = cells(told, "success of a patch of at most 3x3")
    assert by_success[1] == "1.00"
    assert by_success[2] == "0 of 1 (0 to 79 %); 1 of 1 (21 to 100 %), from 0.7"
    assert by_success[3] == "0 of 2 (0 to 66 %); 0 of 2 (0 to 66 %)"
    assert by_success[4] == "0.55"


def test_the_surrogate_tracks_the_truth_where_both_fall_together(modules: dict[str, ModuleType]) -> None:
    tracked = row("one", accepted=True, asr=1.0)
    assert modules["tables"].tracking(tracked) == pytest.approx(1.0)
    tracked["curve"][-1]["asr"] = 1.0  # the true trigger comes back where the surrogate is gone
    assert modules["tables"].tracking(tracked) < 0
    assert np.isnan(modules["tables"].tracking(row("idle", accepted=True, asr=0.0)))


def test_figures_show_both_paths_the_found_triggers_and_every_network(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    figures = modules["figures"]
    rows = [
        row("one", accepted=True, asr=1.0),
        row("two", accepted=True, asr=1.0, attack="trojan"),
        row("three", accepted=True, asr=1.0, attack="trojan"),
        row("clean", accepted=False, asr=0.0, success=0.4, size=5),
    ]
    rows[1]["pictures"]["surrogate"] = png(np.full((8, 8, 3), 200, np.uint8))
    path, rounds = (line.get_xydata() for line in figures.tracking_figure(rows[:1]).axes[0].lines[1:])
    assert path == pytest.approx(np.array([[90, 90], [30, 30], [0, 0]]))
    assert rounds == pytest.approx(np.array([[90, 100], [10, 0]]))
    shown = figures.one_an_attack(rows[:3])
    assert [one["record"] for one in shown] == ["/runs/one", "/runs/two"]
    panels = figures.triggers_figure(shown).axes
    assert (panels[-1].images[0].get_array() == 200).all()
    clean, infected = (points.get_offsets() for points in figures.gate_figure(rows).axes[0].collections[:2])
    assert (len(clean), len(infected)) == (1, 3)
    assert clean[0][1] == pytest.approx(40)
    lines = tmp_path / "study.jsonl"
    for one in rows:
        modules["lines"].add_row(lines, one)
    assert len(figures.save_figure(figures.gate_figure(rows), tmp_path / "gate")) == 2
