"""The child process in which one of BackdoorBox's own repairs runs.

``python -m clp_plugin.adapters.backdoorbox.launcher [--trust] run SCRIPT SETTINGS`` with a workspace of the checkout as the
current folder.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from clp_plugin.adapters.driving.bridges import restore_numpy_names, take_the_cpu_for_cuda
from clp_plugin.adapters.driving.lifeline import end_with_parent
from clp_plugin.adapters.driving.repairs import PRODUCED, leave, read_asked
from clp_plugin.types import ImageSet, Record

from .importing import lend_core
from .record import BackdoorBoxRecords

_FOUND = re.compile(r"Top-1 correct / Total: (\d+)/(\d+)")


def main(argv: list[str]) -> None:
    """Repair, measure by the toolbox's own function, store."""
    end_with_parent()
    restore_numpy_names()
    take_the_cpu_for_cuda()
    lend_core(Path.cwd(), {})
    asked = read_asked(Path(argv[-1]))
    record = BackdoorBoxRecords().open(Path(asked.record), trust="--trust" in argv)
    cuda = asked.device.startswith("cuda")
    schedule = {"device": "GPU" if cuda else "CPU", "GPU_num": 1, "num_workers": 0, "save_dir": str(PRODUCED / "own")}
    model = _repaired(record, asked.method, asked.options, schedule, seed=asked.seed)
    reported = _measured(model, record, schedule)
    weights, masks = _plain(model)
    leave({"weights": weights, "masks": masks}, reported)


def _repaired(
    record: Record, method: str, options: Mapping[str, Any], schedule: Mapping[str, Any], *, seed: int
) -> nn.Module:
    core = importlib.import_module("core")
    benign, loss = _data(record.benign), nn.CrossEntropyLoss()
    own = {
        **schedule, **options, "experiment_name": method, "log_iteration_interval": 1, "test_epoch_interval": 1 << 30,
        "save_epoch_interval": 1 << 30,
    }  # fmt: skip
    if method == "NAD":
        layers = list(options["layers"])
        defense = core.NAD(record.model, loss, options["power"], [options["beta"]] * len(layers), layers, seed=seed)
        defense.repair(benign, 1.0, own)
    elif method == "FineTuning":
        defense = core.FineTuning(train_dataset=benign, model=record.model, layer=["full layers"], loss=loss, seed=seed)
        defense.repair(own)
    else:
        defense = core.Pruning(
            train_dataset=benign,
            model=record.model,
            layer=options["layer"],
            prune_rate=options["prune_rate"],
            seed=seed,
        )
        defense.repair(own)
    repaired: nn.Module = defense.get_model()
    return repaired.eval()


def _measured(model: nn.Module, record: Record, schedule: Mapping[str, Any]) -> dict[str, float]:
    """ACC and ASR by ``core.utils.test``, which tells them to its log only; triggered images are those that count for ASR."""
    test = importlib.import_module("core.utils").test
    triggered = record.triggered.images
    wanted = torch.as_tensor(record.target.wanted(triggered.labels))
    sets = {
        "acc": _data(record.clean),
        "asr": TensorDataset(_data(record.triggered.images).tensors[0], torch.as_tensor(wanted)),
    }
    found = {}
    for name, data in sets.items():
        own = {**schedule, "batch_size": 256, "metric": name, "experiment_name": name}
        test(model, data, own)
        (log,) = Path(own["save_dir"]).glob(f"{name}_*/log.txt")
        right, count = _FOUND.findall(log.read_text(encoding="utf-8"))[-1]
        found[name] = int(right) / int(count)
    return found


def _data(images: ImageSet) -> TensorDataset:
    return TensorDataset(torch.cat(list(images.batches(256))), torch.as_tensor(images.labels))


def _plain(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights under the names that the attacked network has, and the masks that pruning put around parts of it."""
    inner: nn.Module = model.module if isinstance(model, nn.DataParallel) else model
    masks: dict[str, torch.Tensor] = {}
    for name, part in inner.named_children():
        if type(part).__name__ == "MaskedLayer":
            masks[name] = torch.as_tensor(part.mask).cpu()
    weights: dict[str, torch.Tensor] = {}
    for key, value in inner.state_dict().items():
        name, _, rest = key.partition(".")
        weights[f"{name}.{rest.removeprefix('base.')}" if name in masks else key] = value.cpu()
    return weights, masks


if __name__ == "__main__":
    main(sys.argv[1:])
