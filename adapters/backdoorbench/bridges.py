"""Bridges from BackdoorBench's unmodified scripts to today's Python, installed by :mod:`launcher` in the child."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..driving.bridges import (
    MovedModules,
    accept_option_values,
    give_loader_iterators_next,
    load_without_running_pickles,
    restore_numpy_names,
    restore_pkg_resources,
    start_from_random_weights,
    take_the_cpu_for_cuda,
)

# Packages that the checkout moved without telling those who import them.
MOVED = {"defense.mbns": "utils.defense_utils.mbns", "defense.dde": "utils.defense_utils.dde"}
# Options declared with a type that refuses every sensible value.
OPTION_TYPES: dict[str, Callable[[str], Any]] = {
    "--num_workers": int,
    "--u_num": int,
    "--client_optimizer": str,
    "--steplr_milestones": lambda text: [int(part) for part in text.strip("[]").split(",")],
}


def bridge_everything(*, trust: bool, fast_cpu: bool, pretrained: bool) -> None:
    """Install all bridges.

    Args:
        trust: Let ``torch.load`` run whatever a pickle asks for.
        fast_cpu: Give a script that asks for mixed precision on CUDA bfloat16 on the CPU, and channels-last weights.
        pretrained: Leave the download of ImageNet weights alone; without it, those networks start from random weights,
            which is right for defenses, as they load the record's weights over them.
    """
    with contextlib.suppress(RuntimeError, ValueError):  # scripts define their datasets where only a fork finds them
        multiprocessing.set_start_method("fork")
    restore_numpy_names()
    restore_pkg_resources()
    sys.meta_path.insert(0, MovedModules(MOVED))
    accept_option_values(OPTION_TYPES)
    load_without_running_pickles(trust=trust)
    give_loader_iterators_next()
    take_the_cpu_for_cuda()
    _network_factories()
    if not pretrained:
        start_from_random_weights()
    if fast_cpu:
        _fast_cpu()


def _network_factories() -> None:
    """Two of the toolbox's own networks are called with a number of classes that their factories do not take."""

    def give_classes(module: types.ModuleType) -> None:
        if hasattr(module, "SENet18"):
            module.SENet18 = lambda num_classes=10: module.SENet(module.PreActBlock, [2, 2, 2, 2], num_classes)  # type: ignore[attr-defined]
        for name in [name for name in vars(module) if name.startswith("ResNeXt29_")]:
            cardinality, _, width = name.removeprefix("ResNeXt29_").rstrip("d").partition("x")
            setattr(
                module,
                name,
                lambda num_classes=10, c=int(cardinality), w=int(width): module.ResNeXt([3, 3, 3], c, w, num_classes),
            )

    for name in ("models.senet", "models.resnext"):
        if Path(*name.split(".")).with_suffix(".py").is_file():
            give_classes(importlib.import_module(name))


def _fast_cpu() -> None:
    """bfloat16 where the script asks for mixed precision, and weights in the layout that makes it pay."""
    import torch

    def autocast(enabled: bool = True, *_: Any, **__: Any) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)

    torch.cuda.amp.autocast = autocast  # type: ignore[misc,assignment]
    trainers = importlib.import_module("utils.aggregate_block.model_trainer_generate")
    generate = trainers.generate_cls_model

    def channels_last(*args: Any, **facts: Any) -> Any:
        return generate(*args, **facts).to(memory_format=torch.channels_last)

    trainers.generate_cls_model = channels_last  # type: ignore[attr-defined]
