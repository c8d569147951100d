"""``bench attack`` and ``bench list``: a record and what is on offer, and what a mistake gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import ATTACK, bench, refused

from clp_plugin.records.opening import open_record


def test_attack_stores_a_record_whose_metrics_it_prints(record: Path) -> None:
    opened = open_record(record)
    assert {"record.json", "model.safetensors", "images.safetensors"} <= {path.name for path in record.iterdir()}
    assert opened.provenance.toolbox == "builtin"
    assert opened.provenance.poison_rate == 0.1
    readable = {path.name: path.stat().st_mode & 0o777 for path in record.iterdir() if path.is_file()}
    assert len(set(readable.values())) == 1, readable  # safetensors' own files would be for their owner alone


def test_same_attack_twice_gives_the_same_model(record: Path, tmp_path: Path) -> None:
    first = bench("list", "records", "--root", record.parent, "--json").json["records"]
    assert [item["path"] for item in first] == [str(record)]
    again = bench("attack", *ATTACK, "--out", tmp_path / "again", "--device", "cpu", "--json")
    assert again.code == 0
    one, two = (json.loads((folder / "record.json").read_text()) for folder in (record, tmp_path / "again"))
    assert one["sha256"] == two["sha256"]


def test_a_value_of_zero_is_given(tmp_path: Path) -> None:
    made = bench("attack", *ATTACK, "--poison-rate", "0", "--out", tmp_path / "twin", "--device", "cpu")
    assert made.code == 0
    assert "did not take" not in made.err
    assert open_record(tmp_path / "twin").provenance.poison_rate == 0


def test_attack_mistakes(record: Path, tmp_path: Path) -> None:
    out = ["attack", "--out", tmp_path / "x"]
    assert "unknown attack 'nope'; known: badnets, blended" in refused(*out, "--method", "nope")
    assert "unknown dataset 'nope'; known: cifar10, digits, folder" in refused(*out, "--dataset", "nope")
    assert "known: preactresnet18, resnet18" in refused(*out, "--model", "nope")
    assert "unknown recipe 'nope'; known: clp-paper, demo, small-network" in refused(*out, "--recipe", "nope")
    assert "give 0 to 9" in refused(*out, "--target", "10")
    assert "or `all` (all-to-all), found 'zero'" in refused(*out, "--target", "zero")
    assert "found 1.5" in refused(*out, "--poison-rate", "1.5")
    assert "device 'nope' cannot be used here" in refused(*out, *ATTACK, "--device", "nope")
    assert "--force to replace it" in refused("attack", *ATTACK, "--out", record)
    assert "data" in refused(*out, "--dataset", "cifar10")
    assert not (tmp_path / "x").exists(), "a command that cannot work leaves nothing behind"


@pytest.mark.parametrize(
    ("what", "names"), [("defenses", ["clp", "dhbe"]), ("attacks", ["badnets", "ssba"]), ("toolboxes", ["builtin"])]
)
def test_list_shows_what_is_on_offer(what: str, names: list[str]) -> None:
    found = bench("list", what, "--json").json
    assert list(found) == [what]
    assert set(names) <= {item["name"] for item in found[what]}
    for item in found[what]:
        assert {"name", "object", "summary", "citation", "budget", "defaults", "dataset_defaults", "origin"} <= set(
            item
        )
    shown = bench("list", what)
    assert shown.code == 0
    assert all(name in shown.out for name in names)


def test_list_records_shows_complete_and_unfinished_ones(record: Path, tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "unfinished.json").write_text("{}")
    (tmp_path / "live").symlink_to(record)
    found = bench("list", "records", "--root", tmp_path, "--json").json["records"]
    assert [list(item) for item in found] == [["path", "toolbox", "summary", "complete"]] * 2
    assert [item["complete"] for item in found] == [False, True]
    assert "incomplete" in bench("list", "records", "--root", tmp_path).out
    assert "there is no folder" in refused("list", "records", "--root", tmp_path / "no")
