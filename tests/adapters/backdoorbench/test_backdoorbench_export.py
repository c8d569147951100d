"""What is written for the toolbox is what its own readers expect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from csv_tables import csv_table
from fake_records import fake_record

from clp_plugin.adapters.backdoorbench.export import export_defense

ROW = {"u": 3.0, "pruned": 4, "acc": 0.5, "asr": 0.25, "ra": 0.75, "clean_loss": 1.5, "triggered_loss": 2.5}


def test_the_result_is_a_plain_dictionary_with_the_attacked_models_keys(tmp_path: Path) -> None:
    record = fake_record()
    record = replace(record, provenance=replace(record.provenance, architecture="backdoorbench:vgg19_bn"))
    export_defense(tmp_path, "clp_plugin", record=record, model=record.model.half(), final={"acc": 0.5})
    found = torch.load(tmp_path / "defense_result.pt", weights_only=True)
    assert list(found) == ["model_name", "num_classes", "model"]
    assert (found["model_name"], found["num_classes"]) == ("vgg19_bn", record.target.num_classes)
    wanted = record.model.state_dict()
    assert list(found["model"]) == list(wanted)
    assert all(torch.equal(found["model"][key], value) for key, value in wanted.items())


def test_tables_have_the_toolboxs_columns_and_fractions(tmp_path: Path) -> None:
    record = fake_record()
    rows = [{**ROW, "u": 0.0, "acc": 0.1}, ROW]
    export_defense(tmp_path, "clp_plugin", record=record, model=record.model, final=ROW, sweep=rows)
    columns = ["u", "clean_test_loss_avg_over_batch", "bd_test_loss_avg_over_batch", "test_acc", "test_asr", "test_ra"]
    sweep = csv_table(tmp_path / "u_step_df.csv", index_col=0)
    assert list(sweep.columns) == columns
    assert sweep.index.tolist() == [0, 1]
    assert sweep["test_acc"].tolist() == [0.1, 0.5]
    summary = csv_table(tmp_path / "clp_plugin_df_summary.csv", index_col=0)
    assert summary.to_dict("records") == [dict(zip(columns, [3.0, 1.5, 2.5, 0.5, 0.25, 0.75], strict=True))]
    assert (tmp_path / "u_step_df.csv").read_text().splitlines()[0] == "," + ",".join(columns)


def test_without_a_sweep_there_is_no_sweep_file_and_only_known_columns(tmp_path: Path) -> None:
    record = fake_record()
    measured = {"acc": 0.5, "asr": 0.25, "ra": 0.75}
    export_defense(tmp_path, "clp_plugin_anp", record=record, model=record.model, final=measured)
    assert {path.name for path in tmp_path.iterdir()} == {"defense_result.pt", "clp_plugin_anp_df_summary.csv"}
    summary = csv_table(tmp_path / "clp_plugin_anp_df_summary.csv", index_col=0)
    assert list(summary.columns) == ["test_acc", "test_asr", "test_ra"]
