"""``bench record``: the record, what is said at once, and the other commands on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import METRICS, bench, refused
from own_parts import SIZE, TARGET, OwnParts, own_parts


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path / "data"))


@pytest.fixture
def parts(tmp_path: Path) -> OwnParts:
    return own_parts(tmp_path / "parts", count=40)


def arguments(parts: OwnParts, out: Path, *more: object, target: object = TARGET) -> list[object]:
    given = ["record", "--checkpoint", parts.checkpoint, "--arch", parts.arch, "--images", parts.images, "--out", out]
    return [*given, "--trigger", parts.trigger, "--at", "bottom-right", "--target", target, *more]


def test_other_commands_work_on_the_record(tmp_path: Path, parts: OwnParts) -> None:
    out = tmp_path / "mine"
    found = bench(*arguments(parts, out, "--n-benign", 12, "--json"))
    assert list(found.json) == ["record", "input_shape", "num_classes", "n_benign", "loaded", *METRICS]
    assert (found.json["acc"], found.json["asr"], found.json["n_benign"], found.json["n_clean"]) == (1, 1, 12, 28)
    assert found.json["loaded"]["taken"] == "net"
    assert "note" not in found.err
    assert sorted(path.name for path in out.iterdir()) == ["parts.json", "trigger.pdf", "trigger.png"]
    # One of three channels is 1.1 standard deviations above the others' mean, and none can be more than 1.42.
    defended = bench("defend", "--record", out, "--u", 1, "--json").json
    assert (defended["before"], defended["pruned"]) == ({key: found.json[key] for key in METRICS}, 1)
    assert (
        bench("defend", "--record", out, "--method", "ft", "--option", "epochs=1", "--json").json["budget"]
        == "benign:12"
    )
    assert bench("sweep", "--record", out, "--u", "0:2:1", "--json").json["rows"][2]["asr"] == 1
    assert bench("correlate", "--record", out, "--json").code == 0
    compared = bench("compare", "--record", out, "--out", tmp_path / "table", "--json").json
    assert {row["method"] for row in compared["rows"]} == {"clp", "ft"}
    assert bench("scan", out, "--json").json["layers"][0]["name"] == "bn"
    listed = bench("list", "records", "--root", tmp_path, "--json").json["records"]
    assert [(row["toolbox"], row["complete"]) for row in listed] == [("parts", True)]


def test_it_says_when_the_attack_does_not_fire_and_when_the_network_reads_the_images_wrong(
    tmp_path: Path, parts: OwnParts
) -> None:
    found = bench(*arguments(parts, tmp_path / "a", target=1))
    assert found.code == 0
    assert "the attack did not take: ASR 0.0" in found.err
    assert "is the trigger the attacker's" in found.err
    assert "target 1" in found.out
    found = bench(*arguments(parts, tmp_path / "b", "--mean", "0.5", "--std", "0.2,0.2,0.2"))
    assert "are --mean, --std, --input-size and the order of the classes" in found.err


def test_the_contact_sheet_shows_grey_levels_whatever_the_normalization(
    tmp_path: Path, parts: OwnParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clp_plugin.reports import figures

    seen: list[np.ndarray] = []  # type: ignore[type-arg]
    draw = figures.example_images_figure
    monkeypatch.setattr(
        figures, "example_images_figure", lambda *images, **rest: [seen.extend(images), draw(*images, **rest)][1]
    )
    assert bench(*arguments(parts, tmp_path / "a", "--mean", "0.4,0.5,0.6", "--std", "0.2")).code == 0
    shown = np.flatnonzero(parts.labels != TARGET)[:8]
    assert (seen[0] == parts.pixels[shown]).all()
    assert (seen[1] == parts.triggered()[shown]).all()
    assert seen[0].shape == (8, 3, SIZE, SIZE)


def test_a_users_mistakes_get_one_line(tmp_path: Path, parts: OwnParts) -> None:
    out = tmp_path / "out"
    assert "--mean: expected one number" in refused(*arguments(parts, out, "--mean", "a,b"))
    assert "--input-size: expected C,H,W" in refused(*arguments(parts, out, "--input-size", "8"))
    assert "one of --trigger" in refused(*arguments(parts, out, "--triggered", parts.images))
    assert "unknown place 'below'" in refused(*arguments(parts, out, "--at", "below"))
    assert "target: expected a class number" in refused(*arguments(parts, out, target="five"))
    assert not out.exists()
    bench(*arguments(parts, out))
    assert "bench record --n-benign" in refused("defend", "--record", out, "--method", "ft")
