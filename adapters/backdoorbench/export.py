"""Writes a repaired model as the toolbox's own defenses do, so that its analysis scripts read it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clp_plugin.files.atomic import write_atomically
from clp_plugin.types import Record

if TYPE_CHECKING:
    from torch import nn

PREFIX = "backdoorbench:"
# Our names of what is measured, and the toolbox's columns; both hold fractions in [0, 1] and mean losses.
COLUMNS = {
    "u": "u",
    "clean_loss": "clean_test_loss_avg_over_batch",
    "triggered_loss": "bd_test_loss_avg_over_batch",
    "acc": "test_acc",
    "asr": "test_asr",
    "ra": "test_ra",
}


def export_defense(
    place: Path,
    name: str,
    *,
    record: Record,
    model: nn.Module,
    final: Mapping[str, float],
    sweep: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write ``defense_result.pt``, ``NAME_df_summary.csv`` and, of a sweep, ``u_step_df.csv``.

    Args:
        place: The folder to fill.
        name: Name of the defense's folder; the toolbox puts it before the summary's name.
        record: The attacked model's record.
        model: The repaired network. Its weights are stored with the keys and shapes of the attacked one.
        final: Measurements of the repaired network, by those keys of ``COLUMNS`` that are known.
        sweep: The same measurements for each u tried.
    """
    import torch

    content = {
        "model_name": record.provenance.architecture.removeprefix(PREFIX),
        "num_classes": record.target.num_classes,
        "model": OrderedDict((key, value.detach().cpu().clone()) for key, value in model.state_dict().items()),
    }
    write_atomically(place / "defense_result.pt", lambda file: torch.save(content, file))
    _write_table(place / f"{name}_df_summary.csv", [final])
    if sweep:
        _write_table(place / "u_step_df.csv", sweep)


def _write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    import pandas as pd

    columns = [key for key in COLUMNS if key in rows[0]]
    frame = pd.DataFrame([{COLUMNS[key]: row[key] for key in columns} for row in rows])
    write_atomically(path, frame.to_csv)
