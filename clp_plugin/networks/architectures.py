"""Build a network from one line of text."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import ClpError, ConfigError
from clp_plugin.imports import import_file

if TYPE_CHECKING:
    from torch import nn

FORMS = "builtin:NAME, torchvision:NAME, timm:NAME, trojanzoo:NAME, path/to/file.py:callable"
# Networks that adapters build, each by a function `build(name, *, num_classes, **options)` of a module.
_ADAPTERS = {"builtin": "clp_plugin.adapters.builtin.models.build", "trojanzoo": "clp_plugin.adapters.trojanzoo.models"}
_LIBRARIES = (*_ADAPTERS, "torchvision", "timm")


def build_model(spec: str, /, *, num_classes: int, **options: Any) -> nn.Module:
    """An untrained network in eval mode.

    Args:
        spec: Source and name: ``"builtin:resnet18"``, ``"torchvision:resnet50"``, ``"timm:NAME"``,
            ``"path/to/file.py:callable"``; the callable gets ``num_classes`` if it takes it.
        num_classes: Number of outputs, at least 1.
        options: Passed to the builder, e.g. ``width=16``.

    Raises:
        ConfigError: If the name is unknown, its package is missing, or the builder does not take the options.
    """
    source, name = _split(spec)
    if num_classes < 1:
        raise ConfigError(f"{spec}: expected at least 1 class, found {num_classes}")
    ours: dict[str, Callable[[str], Callable[..., Any]]] = {each: partial(_adapter, each) for each in _ADAPTERS}
    builder = {**ours, "torchvision": _torchvision, "timm": _timm}.get(source, _from_file)
    make = builder(name if builder is not _from_file else spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weight initialization, which a checkpoint replaces
            model = make(num_classes=num_classes, **options)
    except ClpError:
        raise
    except Exception as error:  # a user's own constructor may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise ConfigError(
            f"cannot build {spec} with {num_classes} classes and {given}: {type(error).__name__}: {error}"
        ) from error
    return _as_module(model, spec).eval()


def default_input_shape(spec: str) -> tuple[int, int, int]:
    """The input ``(C, H, W)`` an architecture is meant for, when nobody says otherwise.

    Raises:
        ConfigError: If the spec or a timm name is unknown.
    """
    source, name = _split(spec)
    if source == "torchvision":
        return (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    if source == "timm":
        _timm(name)
        config = importlib.import_module("timm.models").get_pretrained_cfg(name)
        channels, height, width = config.input_size if config is not None else (3, 224, 224)
        return int(channels), int(height), int(width)
    return 3, 32, 32


def _split(spec: str) -> tuple[str, str]:
    source, colon, name = spec.rpartition(":")
    if not (colon and source and name) or (source not in _LIBRARIES and source[-3:] != ".py"):
        hint = f" (perhaps torchvision:{spec})" if not colon and spec else ""
        raise ConfigError(f"unknown architecture {spec!r}{hint}; expected one of the forms {FORMS}")
    return source, name


def _adapter(source: str, name: str) -> Callable[..., Any]:
    build = importlib.import_module(_ADAPTERS[source]).build

    def make(**options: Any) -> Any:
        return build(name, **options)

    return make


def _torchvision(name: str) -> Callable[..., Any]:
    models = importlib.import_module("torchvision.models")
    _require_known("torchvision", name, models.list_models(module=models))
    # Their own initialization takes seconds and warns.
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}

    def make(**options: Any) -> Any:
        return models.get_model(name, weights=None, **{**quick, **options})

    return make


def _timm(name: str) -> Callable[..., Any]:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ConfigError(f'timm:{name} needs timm, which is not installed: pip install "clp-plugin[timm]"') from error
    _require_known("timm", name.partition(".")[0], timm.list_models())

    def make(**options: Any) -> Any:
        return timm.create_model(name, pretrained=False, **options)

    return make


def _require_known(source: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(
            f"unknown architecture {source}:{name}{hint} ({len(names)} known, see {source}'s list_models())"
        )


def architecture_file(spec: str) -> ModuleType | None:
    """The module of the user's own file that a spec names; None for architectures of a library.

    Raises:
        ConfigError: If the spec is malformed, or the file is missing or fails.
    """
    source, _ = _split(spec)
    if source in _LIBRARIES:
        return None
    try:
        return import_file(Path(source))
    except Exception as error:  # whatever the user's own code raises
        hint = "; put the folder that holds it on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(
            f"architecture {spec!r}: running {source} failed: {type(error).__name__}: {error}{hint}"
        ) from error


def _from_file(spec: str) -> Callable[..., Any]:
    source, _, name = spec.rpartition(":")
    found = getattr(architecture_file(spec), name, None)
    if not callable(found):
        raise ConfigError(f"architecture {spec!r}: {source} has no callable {name!r}; expected one returning a network")
    return _given_what_it_takes(found)


def _given_what_it_takes(function: Callable[..., Any]) -> Callable[..., Any]:
    def make(*, num_classes: int, **options: Any) -> Any:
        parameters = inspect.signature(function).parameters.values()
        if any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
            return function(num_classes=num_classes, **options)
        return function(**options)

    return make


def _as_module(model: Any, spec: str) -> nn.Module:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ConfigError(f"architecture {spec!r}: expected a torch.nn.Module, the callable returned {type(model)}")
    return model
