"""Reading back what the toolbox's own defenses leave behind: a network and the numbers that they printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clp_plugin.errors import CheckpointError, RecordError
from clp_plugin.files.reading import read_text
from clp_plugin.files.tables import read_csv_text
from clp_plugin.files.torch_files import read_pickle_checkpoint

from .attack_result import read_count, read_state_dict
from .defenses import DEFENSES, ToolboxDefense
from .models import load
from .plugged import plug_in

RESULT = "defense_result.pt"
_PLUG = "plug_layer.pt"
_COLUMNS = {"acc": "test_acc", "asr": "test_asr", "ra": "test_ra"}
_PRUNED, _MASK = "_orig", "_mask"  # what torch's pruning makes of a weight that it masks


def read_model(folder: Path, *, options: Mapping[str, Any], trust: bool = False) -> nn.Module:
    """The repaired network in eval mode.

    Args:
        folder: The defense's folder, ``record/NAME/defense/METHOD``.
        options: The settings that it ran with, as far as known.
        trust: Allow pickles that run code.

    Raises:
        RecordError: If there is no result, or it is empty because the defense crashed.
        CheckpointError: If it cannot be read safely or does not fit its architecture.
    """
    path = folder / RESULT
    if not path.is_file():
        raise RecordError(
            f"{folder}: no {RESULT}: the defense crashed, still runs, or stores nothing there; run it again"
        )
    content = read_pickle_checkpoint(path, trust=trust)
    if content == {}:
        raise RecordError(
            f"{path} is empty: the defense crashed with a loss that was not finite; run it again with a lower lr"
        )
    if not isinstance(content, Mapping) or not {"model_name", "num_classes", "model"} <= content.keys():
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise RecordError(f"{path}: expected the keys model_name, num_classes, model, found {held}")
    name, classes = str(content["model_name"]), read_count(content["num_classes"], path, "num_classes")
    model = load(name, classes, _masked_weights(read_state_dict(content["model"], path)), where=f"{path} as {name}")
    if (folder / _PLUG).is_file():
        plug = read_pickle_checkpoint(folder / _PLUG, trust=trust)
        if not isinstance(plug, Mapping):
            raise CheckpointError(f"{folder / _PLUG}: expected a dictionary, found {type(plug).__name__}")
        plug_in(model, plug, residual=options.get("use_residual") == "yes", where=str(folder / _PLUG))
    return model.eval()


def _masked_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FP leaves ``weight_orig`` and ``weight_mask`` where the network has ``weight``."""
    merged: dict[str, Tensor] = {}
    for key, value in state.items():
        base = key.removesuffix(_PRUNED)
        if key.endswith(_PRUNED) and base + _MASK in state:
            merged[base] = value * state[base + _MASK]
        elif not (key.endswith(_MASK) and key.removesuffix(_MASK) + _PRUNED in state):
            merged[key] = value
    return merged


def read_reported(folder: Path, method: str) -> dict[str, float]:
    """``acc``, ``asr``, ``ra`` in [0, 1] of the last row that the defense wrote of its own tests; what is absent is left out.

    Args:
        folder: The defense's folder.
        method: A key of ``DEFENSES``; of an unknown one nothing is read.
    """
    defense = DEFENSES.get(method)
    if defense is None or not (folder / defense.summary).is_file():
        return {}
    try:
        frame = read_csv_text(read_text(folder / defense.summary, raises=RecordError), index_col=0)
    except (RecordError, ValueError):  # a script that was killed leaves tables without a row, or without a column
        return {}
    if frame.empty:
        return {}
    row = frame.loc["last"] if "last" in frame.index else frame.iloc[-1]
    return _fractions({str(key): value for key, value in row.items()}, defense)


def _fractions(row: Mapping[Any, Any], defense: ToolboxDefense) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, column in _COLUMNS.items():
        try:
            value = float(row[column]) * defense.scale
        except (KeyError, TypeError, ValueError):  # the toolbox writes words such as nan_value among its numbers
            continue
        if math.isfinite(value):
            found[name] = value
    return found
