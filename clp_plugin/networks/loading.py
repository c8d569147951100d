"""From a checkpoint to its network, saying what was taken, adapted and guessed; and back to a checkpoint of the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.files.containers import Part, beside, names_of, parts_of, with_part_replaced
from clp_plugin.files.stored import StoredCheckpoint, read_stored, require_writable_form, write_like
from clp_plugin.networks.architectures import architecture_file, build_model, default_input_shape
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.fitting import Fit, fit_state_dict, width_wanted
from clp_plugin.networks.guessing import (
    guess_input_shape,
    infer_num_classes,
    runs_on,
    size_in,
)
from clp_plugin.networks.wrappers import unwrap

Shape = tuple[int, int, int]
_ANY_WIDTH = 10  # classes of a first attempt, where the checkpoint does not tell
_SAY_ARCH = (
    "holds weights: say what they are weights of, with --arch torchvision:NAME, timm:NAME, builtin:NAME or "
    "path/to/file.py:callable"
)


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network with the weights of a checkpoint, and how it came to be.

    Attributes:
        model: The network in eval mode, without wrappers.
        input_shape: Shape of one input, ``(C, H, W)``.
        taken: Dotted path to the weights within the file; empty where they are all of it.
        others: Dotted paths to other networks' weights in the file.
        beside: Names of other entries of the file.
        adapted: The steps that made the weights fit, a phrase each.
        guessed: The guesses that were made because nobody said and the file does not, a phrase each, with the option
            that says it.
    """

    model: nn.Module
    input_shape: Shape
    taken: str
    others: tuple[str, ...]
    beside: tuple[str, ...]
    adapted: tuple[str, ...]
    guessed: tuple[str, ...]
    _stored: StoredCheckpoint = field(repr=False)
    _part: Part = field(repr=False)
    _keys: Mapping[str, str] = field(repr=False)

    def notes(self) -> list[str]:
        """All of it in lines for people."""
        lines = []
        if self.taken or self.others:
            also = f"; also there: {', '.join(self.others)} (--key takes another)" if self.others else ""
            entries = f"; beside it: {', '.join(self.beside)}" if self.beside else ""
            lines.append(f"took the weights under {self.taken or 'no key'}{also}{entries}")
        lines += (
            [f"to make them fit: {'; '.join(self.adapted)} (--strict takes keys as they are)"] if self.adapted else []
        )
        lines += [f"guessed: {'; '.join(self.guessed)}"] if self.guessed else []
        return lines

    def facts(self) -> dict[str, object]:
        """The entries of ``bench scan --json`` on how the network was loaded."""
        return {
            "taken": self.taken,
            "others": list(self.others),
            "beside": list(self.beside),
            "adapted": list(self.adapted),
            "guessed": list(self.guessed),
            "input_shape": list(self.input_shape),
        }

    def require_place(self, path: Path) -> None:
        """Refuse a place that :meth:`save` cannot write to, before any work is done.

        Raises:
            ConfigError: If its suffix says another kind of file, or it is the checkpoint itself.
        """
        require_writable_form(self._stored, path)

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the checkpoint with the weights of ``model``: the same container, nesting, keys and precisions.

        Tensors that did not change, and all else that the file holds, are written as they were.

        Args:
            model: A changed copy of :attr:`model`.
            path: Ends in a suffix of torch.save, as the checkpoint does; or in ``.safetensors``, for the weights alone. Of
                weights in several files, also a new folder.

        Raises:
            ConfigError: If it cannot be written there.
        """
        state, held = unwrap(model).state_dict(), self._part.weights
        changed = _in_stored_precision({stored: (held[stored], state[key]) for key, stored in self._keys.items()})
        content = with_part_replaced(self._stored.content, self._part, changed)
        write_like(self._stored, content, {**held, **changed}, path)


def load_network(
    checkpoint: Path,
    *,
    arch: str | None = None,
    key: str | None = None,
    options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    trust: bool = False,
    strict: bool = False,
) -> LoadedNetwork:
    """Open a checkpoint as a network.

    Args:
        checkpoint: A file of torch.save or safetensors, or the index or the folder of weights in several files.
        arch: The architecture: ``torchvision:NAME``, ``timm:NAME``, ``builtin:NAME``, ``file.py:callable``. A whole
            pickled module needs none; then a file only says where its classes are.
        key: Dotted path to the weights within the file; the likeliest that fit if not given.
        options: Options of the architecture, such as ``{"depth": 16}``.
        num_classes: Number of classes; read off the weights if not given.
        input_shape: ``(C, H, W)``; the architecture's usual one if not given.
        trust: Allow pickles that run code.
        strict: Take the stored keys as they are.

    Raises:
        CheckpointError: If the file cannot be read safely, holds no such weights, or they do not fit.
        ConfigError: If the architecture is unknown, missing, or cannot be built.
    """
    classes_in = architecture_file(arch) if arch is not None and trust else None
    stored = read_stored(Path(checkpoint), trust=trust, classes_in=classes_in)
    parts = parts_of(stored.content, stored.path, key=key)
    if (arch is None or classes_in is not None) and _is_network(parts[0].holder):
        if options:
            raise ConfigError(f"{checkpoint} holds a whole module, which is taken as it is; leave --arch-option out")
        return _whole_module(stored, parts[0], input_shape)
    if arch is None:
        scripted = "is TorchScript, whose layers cannot be followed, but it " if stored.form == "torchscript" else ""
        raise ConfigError(f"{checkpoint} {scripted}{_SAY_ARCH}")
    if options and "num_classes" in options:
        raise ConfigError("--arch-option num_classes: the number of classes is given by --num-classes")
    request = _Request(f"{checkpoint} as {arch}", arch, dict(options or {}), num_classes, strict)
    part, model, fit, guessed = _first_that_fits(parts, request)
    shape, guessed_shape = _shape(model, input_shape, arch=arch, options=request.options)
    return _loaded(stored, part, model, fit, shape=shape, guessed=(*guessed, *guessed_shape))


@dataclass(frozen=True)
class _Request:
    where: str
    arch: str
    options: Mapping[str, Any]
    num_classes: int | None
    strict: bool


def _is_network(holder: object) -> bool:
    return isinstance(holder, nn.Module) and not isinstance(holder, torch.jit.ScriptModule)


def _whole_module(stored: StoredCheckpoint, part: Part, input_shape: Shape | None) -> LoadedNetwork:
    """A module that was pickled with its class; a copy, because it is written back as it was."""
    holder: Any = part.holder
    inner = unwrap(holder)
    wrappers = next(name for name, module in holder.named_modules() if module is inner)
    model = copy_of(inner).eval()
    fit = Fit({key: f"{wrappers}.{key}".removeprefix(".") for key in model.state_dict()})
    shape, guessed = _shape(model, input_shape, arch=None, options={})
    return _loaded(stored, part, model, fit, shape=shape, guessed=guessed)


def _first_that_fits(parts: Sequence[Part], request: _Request) -> tuple[Part, nn.Module, Fit, tuple[str, ...]]:
    refused: list[CheckpointError] = []
    for part in parts:
        try:
            return part, *_network(part.weights, request)
        except CheckpointError as error:
            refused.append(error)
    others = f"; other weights in the file, for --key: {names_of(parts[1:])}" if parts[1:] else ""
    raise CheckpointError(f"{refused[0]} (--arch, --arch-option, --num-classes){others}") from refused[0]


def _network(weights: Mapping[str, Any], request: _Request) -> tuple[nn.Module, Fit, tuple[str, ...]]:
    """The architecture with as many classes as the weights have, and the weights in it."""
    classes = _classes(weights) if request.num_classes is None else request.num_classes
    model = unwrap(build_model(request.arch, num_classes=classes, **request.options))
    guessed: tuple[str, ...] = ()
    if request.num_classes is None:
        if (other := width_wanted(model, weights, classes)) is not None:
            classes = other
            model = unwrap(build_model(request.arch, num_classes=classes, **request.options))
        guessed = (f"{classes} classes, read off the weights (--num-classes)",)
    fit = fit_state_dict(model, weights, where=f"{request.where} with {classes} classes", strict=request.strict)
    return model.eval(), fit, guessed


def _classes(weights: Mapping[str, Any]) -> int:
    try:
        return infer_num_classes(weights)
    except CheckpointError:
        return _ANY_WIDTH


def _shape(
    model: nn.Module, given: Shape | None, *, arch: str | None, options: Mapping[str, Any]
) -> tuple[Shape, tuple[str, ...]]:
    """The shape of an input, and what is to be said of it."""
    if given is None and arch is not None and arch.startswith(("torchvision:", "timm:")):
        channels, height, width = default_input_shape(arch)
        height, width = size_in(options) or (height, width)
        shape = (int(options.get("in_chans", channels)), height, width)
    else:
        shape = given or guess_input_shape(model)
    if any(isinstance(module, LazyModuleMixin) for module in model.modules()):
        runs_on(model, shape)
    return shape, () if given else (f"an input of {','.join(map(str, shape))} (--input-size)",)


def _loaded(
    stored: StoredCheckpoint, part: Part, model: nn.Module, fit: Fit, *, shape: Shape, guessed: tuple[str, ...]
) -> LoadedNetwork:
    others = (other for other in parts_of(stored.content, stored.path) if other.path != part.path)
    return LoadedNetwork(
        model=model,
        input_shape=shape,
        taken=part.name,
        others=tuple(other.name or "the file itself" for other in others),
        beside=beside(stored.content, part),
        adapted=fit.adapted,
        guessed=guessed,
        _stored=stored,
        _part=part,
        _keys=fit.stored,
    )


def _in_stored_precision(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Tensor]:
    """Stored key to what is to be stored: the old tensor where nothing changed; tensors that shared memory still do."""
    found: dict[str, Tensor] = {}
    shared: dict[tuple[object, ...], Tensor] = {}
    for key, (old, new) in pairs.items():
        if not isinstance(old, Tensor):  # the state of a module that is no tensor
            continue
        value = old if torch.equal(old.to(new.dtype), new.cpu()) else new.detach().cpu().to(old.dtype)
        place = (old.data_ptr(), tuple(old.shape), old.stride())
        twin = shared.setdefault(place, value)
        found[key] = twin if torch.equal(twin, value) else value
    return found
