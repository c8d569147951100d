"""``bench correlate`` and ``bench sweep`` on a tiny record: the JSON contract, the files, and what a mistake gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import CORRELATION, bench, refused
from csv_tables import csv_table

from clp_plugin.records.opening import open_record


def test_correlate_json_is_the_contract_and_its_files_say_the_same(record: Path, tmp_path: Path) -> None:
    found = bench("correlate", "--record", record, "--out", tmp_path, "--device", "cpu", "--json").json
    assert list(found) == ["layers", "pooled"]
    assert [list(layer) for layer in (*found["layers"], found["pooled"])] == [CORRELATION] * (len(found["layers"]) + 1)
    names = dict(open_record(record).model.named_modules())
    assert all(layer["name"] in names for layer in found["layers"])
    assert found["pooled"]["name"] == "pooled"
    assert found["pooled"]["n"] == sum(layer["n"] for layer in found["layers"][:-1])  # the last is the head
    rows = csv_table(tmp_path / "tac.csv")
    assert list(rows.columns) == ["layer", "channel", "sigma", "tac", "pruned"]
    for layer in found["layers"]:
        mine = rows[rows["layer"] == layer["name"]]
        assert layer["pearson"] == pytest.approx(np.corrcoef(mine["sigma"], mine["tac"])[0, 1], abs=1e-6)
    table = csv_table(tmp_path / "correlation.csv")
    assert list(table.columns) == CORRELATION
    assert len(table) == len(found["layers"]) + 1
    names_written = {"tac.csv", "correlation.csv", "uclc_tac.png", "uclc_tac.pdf"}
    assert {p.name for p in tmp_path.iterdir()} == names_written
    again = bench("correlate", "--record", record, "--out", tmp_path, "--device", "cpu", "--json").json
    assert again == found


def test_correlate_by_the_other_norm_is_kept_apart(record: Path) -> None:
    result = bench("correlate", "--record", record, "--tac-norm", "l1", "--max-images", "20")
    assert result.code == 0
    assert "Spearman" in result.out
    assert (record / "analysis" / "correlate-paper-reshaped-l1" / "tac.csv").is_file()


def test_correlate_mistakes(record: Path) -> None:
    base = ["correlate", "--record", record]
    assert "expected l2 or l1, found 'l3'" in refused(*base, "--tac-norm", "l3")
    assert "--max-images: expected at least 1, found 0" in refused(*base, "--max-images", "0")
    assert "u must be 0 or more" in refused(*base, "--u", "-2")


def test_sweep_json_is_the_contract_and_its_files_say_the_same(record: Path, tmp_path: Path) -> None:
    found = bench("sweep", "--record", record, "--u", "0:2:0.5", "--out", tmp_path, "--device", "cpu", "--json").json
    assert list(found) == ["rows"]
    assert [list(row) for row in found["rows"]] == [
        ["u", "pruned", "acc", "asr", "ra", "clean_loss", "triggered_loss"]
    ] * 5
    assert [row["u"] for row in found["rows"]] == [0, 0.5, 1, 1.5, 2]
    pruned = [row["pruned"] for row in found["rows"]]
    assert pruned == sorted(pruned, reverse=True)
    assert csv_table(tmp_path / "sweep.csv").to_dict("records") == found["rows"]
    assert {p.name for p in tmp_path.iterdir()} == {"sweep.csv", "sweep.png", "sweep.pdf"}
    defended = bench("defend", "--record", record, "--u", "1", "--out", tmp_path / "d", "--json").json
    row = found["rows"][2]
    assert (row["pruned"], row["acc"], row["asr"], row["ra"]) == (
        defended["pruned"], defended["after"]["acc"], defended["after"]["asr"], defended["after"]["ra"],
    )  # fmt: skip


def test_sweep_for_people_says_that_it_looks_at_test_images(record: Path) -> None:
    result = bench("sweep", "--record", record, "--u", "1,3", "--parity")
    assert result.code == 0
    assert "oracle" in result.out
    assert (record / "analysis" / "sweep-parity" / "sweep.csv").is_file()


def test_sweep_mistakes(record: Path) -> None:
    for text in ("3:1:1", "a", "0:1:0"):
        assert "expected FIRST:LAST:STEP" in refused("sweep", "--record", record, "--u", text)
    assert "must be 0 or more" in refused("sweep", "--record", record, "--u", "-1,2")
    assert "more than 10000 values" in refused("sweep", "--record", record, "--u", "0:1:1e-7")
