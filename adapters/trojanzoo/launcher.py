"""The child process in which one of TrojanZoo's own defenses repairs the network of a record.

``python -m clp_plugin.adapters.trojanzoo.launcher [--trust] run SCRIPT SETTINGS`` with an empty workspace as the current
folder.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from clp_plugin.adapters.driving.lifeline import end_with_parent
from clp_plugin.adapters.driving.repairs import Asked, leave, make_masks_weights, read_asked
from clp_plugin.records.triggers import corner
from clp_plugin.types import Record

from ..parts.description import TriggerParts, read_description
from .held_images import Held, data_set
from .importing import trojanvision
from .record import TrojanZooRecords

_OWN_FILES = "own"


def main(argv: list[str]) -> None:
    """Repair, measure by the toolbox's own function, store."""
    end_with_parent()
    asked = read_asked(Path(argv[-1]))
    folder = Path(asked.record)
    record = TrojanZooRecords().open(folder, trust="--trust" in argv)
    package = trojanvision()
    package.environ.create(dataset_name=record.provenance.dataset, seed=asked.seed, device=asked.device)
    dataset = data_set(package, record, batch_size=int(asked.options["batch_size"]))
    model = package.models.class_dict["resnet"](
        name=record.provenance.architecture.partition(":")[2], dataset=dataset, folder_path=_OWN_FILES
    )
    model._model.load_state_dict(record.model.state_dict())
    trigger = read_description(folder / TrojanZooRecords.description).trigger
    attack = package.attacks.class_dict["badnet"](
        mark=_mark(package, trigger, folder, record), target_class=record.target.target, dataset=dataset, model=model,
        folder_path=_OWN_FILES,
    )  # fmt: skip
    _repair(package, asked, dataset, model, attack)
    reported = _measured(record, dataset, model, attack)
    make_masks_weights(model._model)
    leave({name: value.cpu() for name, value in model._model.state_dict().items()}, reported)


def _mark(package: ModuleType, parts: TriggerParts, folder: Path, record: Record) -> Any:
    """A mark of TrojanZoo's own kind, with the picture of the record, at the place that the record says."""
    shape = record.input_shape
    mark = package.marks.Watermark(data_shape=list(shape), mark_alpha=parts.weight)
    mark.load_mark(str(parts.picture.below(folder)), already_processed=True)
    size = (mark.mark_height, mark.mark_width)
    mark.mark_height_offset, mark.mark_width_offset = corner(size, shape, parts.at)
    return mark


def _repair(package: ModuleType, asked: Asked, dataset: Any, model: Any, attack: Any) -> None:
    """Run the defense as its own scripts do, which hand every option to everybody."""
    trainer = package.trainer.create(
        dataset_name=dataset.name, dataset=dataset, model=model, OptimType="SGD", parameters="full", **asked.options
    )
    # "original": else it would load the attacked network and the mark anew, from files of its own.
    defense = package.defenses.class_dict[asked.method](
        name=asked.method, attack=attack, dataset=dataset, model=model, folder_path=_OWN_FILES, original=True,
        **asked.options,
    )  # fmt: skip
    defense.detect(**trainer)


def _measured(record: Record, dataset: Any, model: Any, attack: Any) -> dict[str, float]:
    """ACC and ASR by its own validation, which counts images of the target class: ASR without them too, as others tell it."""
    test, counted = (
        dataset.get_dataloader("valid", dataset=Held(images, record))
        for images in (record.clean, record.clean.take(record.triggered.clean_index))
    )
    dataset.loader["valid"] = test
    # Without the limit it would tell an ASR of 0 where accuracy fell by more than 5 points.
    of_all, acc = attack.validate_fn(threshold=math.inf)
    asr, _ = model._validate(
        loader=counted, get_data_fn=attack.get_data, keep_org=False, print_prefix="Without target class"
    )
    return {"acc": acc / 100, "asr": asr / 100, "asr_all": of_all / 100}


if __name__ == "__main__":
    main(sys.argv[1:])
