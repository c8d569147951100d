"""Bridges that put back, in the child process, what today's Python, torch and numpy no longer offer to old scripts.

Each bridge changes the running interpreter, never a file of the checkout, and is installed by a toolbox's launcher only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.resources
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clp_plugin.files.torch_files import read_pickle_checkpoint, read_torch_stream

_PRETRAINED = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "convnext_tiny", "vgg19_bn")
_FACTORIES = (
    "arange", "empty", "empty_like", "full", "full_like", "ones", "ones_like", "rand", "rand_like", "randn",
    "randn_like", "tensor", "zeros", "zeros_like",
)  # fmt: skip


def restore_numpy_names() -> None:
    """Give back the names that numpy 2 took away."""
    import numpy as np

    gone = {"infty": np.inf, "float": float, "int": int, "bool": np.bool_, "object": object, "round_": np.round}
    for name, value in gone.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def restore_pkg_resources() -> None:
    """Give back the one function of ``pkg_resources`` that pytorch_wavelets needs and setuptools no longer ships."""
    if importlib.util.find_spec("pkg_resources") is not None:
        return
    shim = types.ModuleType("pkg_resources")

    def resource_stream(package: str, name: str) -> Any:
        return importlib.resources.files(package.rpartition(".")[0] or package).joinpath(name).open("rb")

    shim.resource_stream = resource_stream  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = shim


class MovedModules(importlib.abc.MetaPathFinder):
    """Finds modules that a checkout moved without telling those who import them."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec under the old name whose loader gives the module of the new name; None for any other module."""
        for old, new in self.moved.items():
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


def accept_option_values(types_of_options: Mapping[str, Callable[[str], Any]]) -> None:
    """Give options a type that takes sensible values, where a script declares one that refuses every such value."""
    add_argument = argparse._ActionsContainer.add_argument

    def repaired(self: Any, *names: str, **facts: Any) -> Any:
        for name in names:
            if name in types_of_options and "type" in facts:
                facts["type"] = types_of_options[name]
        return add_argument(self, *names, **facts)

    argparse._ActionsContainer.add_argument = repaired  # type: ignore[method-assign]


def load_without_running_pickles(*, trust: bool) -> None:
    """Let ``torch.load`` read plain containers only, by this package's own reader: to the CPU unless told where to.

    Args:
        trust: Let it run whatever a pickle asks for, unless the script itself says otherwise.
    """
    import torch

    load = torch.load

    def bridged(file: Any, map_location: Any = None, *args: Any, weights_only: bool | None = None, **facts: Any) -> Any:
        if trust if weights_only is None else not weights_only:
            where = "cpu" if map_location is None and not torch.cuda.is_available() else map_location
            return load(file, where, *args, weights_only=False, **facts)
        content = read_torch_stream(file) if hasattr(file, "read") else read_pickle_checkpoint(Path(file))
        return _placed(content, map_location) if isinstance(map_location, (str, torch.device)) else content

    torch.load = bridged  # type: ignore[assignment]


def _placed(value: Any, device: Any) -> Any:
    """The same containers with their tensors on a device."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return type(value)((key, _placed(item, device)) for key, item in value.items())
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_placed(item, device) for item in value)
    return value


def give_loader_iterators_next() -> None:
    """Give iterators of data loaders the method ``next`` that torch took away."""
    from torch.utils.data import dataloader

    iterators: Any = dataloader._BaseDataLoaderIter
    iterators.next = iterators.__next__


def take_the_cpu_for_cuda() -> None:
    """Make a hard-coded ``cuda`` mean the CPU where there is no GPU."""
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


def start_from_random_weights() -> None:
    """Keep torchvision from downloading ImageNet weights."""
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
