"""What today's Python, torch and numpy no longer offer to the toolbox's unmodified scripts, put back in the child process.

Each bridge changes the running interpreter, never a file of the checkout. They are installed by :mod:`launcher` only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.resources
import importlib.util
import multiprocessing
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clp_plugin.files.checkpoints import plain_containers_allowed

# Packages that the checkout moved without telling those who import them.
MOVED = {"defense.mbns": "utils.defense_utils.mbns", "defense.dde": "utils.defense_utils.dde"}
# Options declared with a type that refuses every sensible value.
OPTION_TYPES: dict[str, Callable[[str], Any]] = {
    "--num_workers": int,
    "--u_num": int,
    "--client_optimizer": str,
    "--steplr_milestones": lambda text: [int(part) for part in text.strip("[]").split(",")],
}
_PRETRAINED = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "convnext_tiny", "vgg19_bn")
_FACTORIES = (
    "arange", "empty", "empty_like", "full", "full_like", "ones", "ones_like", "rand", "rand_like", "randn",
    "randn_like", "tensor", "zeros", "zeros_like",
)  # fmt: skip


def bridge_everything(*, trust: bool, fast_cpu: bool, pretrained: bool) -> None:
    """Install all bridges.

    Args:
        trust: Let ``torch.load`` run whatever a pickle asks for.
        fast_cpu: Where a script asks for mixed precision on CUDA, give it bfloat16 on the CPU, and channels-last weights.
        pretrained: Leave the download of ImageNet weights alone; without it, those networks start from random weights,
            which is right for defenses, as they load the record's weights over them.
    """
    with contextlib.suppress(RuntimeError, ValueError):  # scripts define their datasets where only a fork finds them
        multiprocessing.set_start_method("fork")
    _numpy_names()
    _pkg_resources()
    sys.meta_path.insert(0, _MovedFinder())
    _argument_types()
    _safe_torch_load(trust=trust)
    _loader_iterators_have_next()
    _cuda_means_the_cpu()
    _network_factories()
    if not pretrained:
        _no_imagenet_weights()
    if fast_cpu:
        _fast_cpu()


def _numpy_names() -> None:
    import numpy as np

    gone = {"infty": np.inf, "float": float, "int": int, "bool": np.bool_, "object": object, "round_": np.round}
    for name, value in gone.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def _pkg_resources() -> None:
    """setuptools no longer ships it; pytorch_wavelets needs one function of it."""
    if importlib.util.find_spec("pkg_resources") is not None:
        return
    shim = types.ModuleType("pkg_resources")

    def resource_stream(package: str, name: str) -> Any:
        return importlib.resources.files(package.rpartition(".")[0] or package).joinpath(name).open("rb")

    shim.resource_stream = resource_stream  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = shim


class _MovedFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for old, new in MOVED.items():
            if fullname == old or fullname.startswith(f"{old}."):
                return importlib.machinery.ModuleSpec(fullname, _Alias(new + fullname[len(old) :]))
        return None


class _Alias(importlib.abc.Loader):
    def __init__(self, real: str) -> None:
        self.real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return importlib.import_module(self.real)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: the module is there already."""


def _argument_types() -> None:
    add_argument = argparse._ActionsContainer.add_argument

    def repaired(self: Any, *names: str, **facts: Any) -> Any:
        for name in names:
            if name in OPTION_TYPES and "type" in facts:
                facts["type"] = OPTION_TYPES[name]
        return add_argument(self, *names, **facts)

    argparse._ActionsContainer.add_argument = repaired  # type: ignore[method-assign]


def _safe_torch_load(*, trust: bool) -> None:
    import torch

    load = torch.load

    def bridged(file: Any, map_location: Any = None, *args: Any, weights_only: bool | None = None, **facts: Any) -> Any:
        if map_location is None and not torch.cuda.is_available():
            map_location = "cpu"
        with plain_containers_allowed():
            return load(
                file, map_location, *args, weights_only=not trust if weights_only is None else weights_only, **facts
            )

    torch.load = bridged  # type: ignore[assignment]


def _loader_iterators_have_next() -> None:
    from torch.utils.data import dataloader

    iterators: Any = dataloader._BaseDataLoaderIter
    iterators.next = iterators.__next__


def _cuda_means_the_cpu() -> None:
    """Where there is no GPU, a hard-coded ``cuda`` is the CPU."""
    import torch

    if torch.cuda.is_available():
        return

    def off_cuda(value: Any) -> Any:
        return "cpu" if isinstance(value, (str, torch.device)) and str(value).startswith("cuda") else value

    def without_cuda(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **facts: Any) -> Any:
            return function(*map(off_cuda, args), **{key: off_cuda(value) for key, value in facts.items()})

        return call

    def stay(self: Any, *_: Any, **__: Any) -> Any:
        return self

    for name in _FACTORIES:
        setattr(torch, name, without_cuda(getattr(torch, name)))
    for kind in (torch.Tensor, torch.nn.Module):
        kind.to = without_cuda(kind.to)  # type: ignore[method-assign]
        kind.cuda = stay  # type: ignore[method-assign]


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


def _no_imagenet_weights() -> None:
    import torchvision

    def untrained(build: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, pretrained: bool = False, weights: Any = None, **facts: Any) -> Any:
            return build(*args, weights=None, **facts)

        return call

    for name in _PRETRAINED:
        build = untrained(getattr(torchvision.models, name))
        for home in [m for key, m in list(sys.modules.items()) if key.startswith("torchvision.models")]:
            if name in vars(home):
                setattr(home, name, build)


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
