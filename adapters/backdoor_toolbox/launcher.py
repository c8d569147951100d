"""The child process in which one of backdoor-toolbox's own defenses repairs the network of a record.

``python -m clp_plugin.adapters.backdoor_toolbox.launcher [--trust] run SCRIPT SETTINGS`` with a workspace of the checkout as
the current folder.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clp_plugin.adapters.driving.bridges import (
    load_without_running_pickles,
    restore_numpy_names,
    take_the_cpu_for_cuda,
)
from clp_plugin.adapters.driving.lifeline import end_with_parent
from clp_plugin.adapters.driving.repairs import leave, make_masks_weights, read_asked

from .record import PoisonedSet, network_file, poisoned_set
from .toolbox_facts import MODULES

_DEFENSES, _RESULTS = Path("other_defenses_tool_box"), "results"
_NETWORK = Path("attacked.pt")


def main(argv: list[str]) -> None:
    """Repair, measure by the toolbox's own function, store."""
    end_with_parent()
    restore_numpy_names()
    take_the_cpu_for_cuda()
    load_without_running_pickles(trust="--trust" in argv)
    asked = read_asked(Path(argv[-1]))
    _make_room()
    shutil.copyfile(network_file(Path(asked.record)), _NETWORK)
    config, tools = importlib.import_module("config"), importlib.import_module("utils.tools")
    tools.setup_seed(asked.seed)
    arguments = _arguments(poisoned_set(Path(asked.record)), config)
    module = importlib.import_module(f"{_DEFENSES}.{MODULES[asked.method]}")
    defense = getattr(module, asked.method)(arguments, **asked.options)
    defense.detect()
    network: nn.Module = defense.model.module
    if asked.method == "NAD":  # its own model has become the teacher; the student is stored where the network lay
        network.load_state_dict(torch.load(_NETWORK))
    make_masks_weights(network)
    acc, asr = tools.test(
        network, test_loader=defense.test_loader, poison_test=True, poison_transform=defense.poison_transform,
        num_classes=defense.num_classes, source_classes=defense.source_classes,
        all_to_all="all_to_all" in arguments.poison_type,
    )  # fmt: skip
    leave({name: value.cpu() for name, value in network.state_dict().items()}, {"acc": acc, "asr": asr})


def _make_room() -> None:
    """Put a folder of links in the place of the link to its defenses, which write beside themselves."""
    there = _DEFENSES.resolve()
    _DEFENSES.unlink()
    (_DEFENSES / _RESULTS).mkdir(parents=True)
    for item in there.iterdir():
        if item.name != _RESULTS:
            (_DEFENSES / item.name).symlink_to(item, target_is_directory=item.is_dir())


def _arguments(poisoned: PoisonedSet, config: Any) -> Namespace:
    """What its own script would have read off a command line; the network is found, and stored, where ``model_path`` says."""
    trigger = poisoned.trigger or config.trigger_default[poisoned.dataset][poisoned.attack]
    return Namespace(
        dataset=poisoned.dataset, poison_type=poisoned.attack, poison_rate=poisoned.rate, cover_rate=0.0,
        alpha=poisoned.alpha, test_alpha=None, trigger=trigger, no_aug=False, noisy_test=False, model=None,
        model_path=str(_NETWORK), no_normalize=False, devices="0", log=False, seed=2333,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
