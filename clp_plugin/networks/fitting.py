"""Fit stored weights to a network: adapt their keys where that makes them fit, and say what was adapted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from clp_plugin.errors import CheckpointError
from clp_plugin.networks.alignment import Alignment, Gaps, alignments, bare, gaps_of, shape_of
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.kinds import CONV_TYPES


@dataclass(frozen=True)
class Fit:
    """How stored weights came into a network.

    Attributes:
        stored: Key of the network's state dict to the stored key that its value came from.
        adapted: The steps that made the weights fit, a phrase each; empty where they fitted as they were.
    """

    stored: Mapping[str, str]
    adapted: tuple[str, ...] = ()


def fit_state_dict(model: nn.Module, weights: Mapping[str, Any], *, where: str, strict: bool = False) -> Fit:
    """Load weights into ``model`` in place.

    Keys are adapted where that makes all of them fit: prefixes and wrappers' components on either side, layouts of old
    torchvision versions, tensors stored once for two names, counters that old files lack, tensors that no module wants.
    Nothing that the network computes with may be missing or of another shape. If all floating tensors share one dtype the
    model is converted to it, so that half precision stays half.

    Args:
        model: Changed in place, and only if the weights fit.
        weights: Stored key to tensor. The ``_metadata`` of a state dict (versions of its modules) is respected.
        where: File and architecture, for the message.
        strict: Take all keys as they are, as ``model.load_state_dict(weights)`` does.

    Raises:
        CheckpointError: Names the first key that does not fit, with both shapes.
    """
    wanted = model.state_dict(keep_vars=True)
    alignment, gaps = _best(wanted, weights, strict=strict)
    try:
        if not gaps.size:
            return _load_aligned(model, wanted, weights, alignment, gaps)
        if not strict and (fit := _load_by_its_own_rules(model, weights, alignment)):
            return fit
    except (RuntimeError, ValueError) as error:  # modules may have rules of their own for what they load
        raise CheckpointError(f"{where}: {str(error).strip().splitlines()[0]}") from error
    raise CheckpointError(
        f"{where}: weights do not fit: {gaps.first(wanted, weights, alignment.keys)}; check the architecture, its options "
        "and the number of classes"
    )


def width_wanted(model: nn.Module, weights: Mapping[str, Any], width: int) -> int | None:
    """The number of outputs with which everything would fit; None if it does already, or more stands in the way.

    Args:
        model: Built for ``width`` outputs.
        weights: Stored key to tensor.
        width: Outputs of the layers that may be of another width.
    """
    wanted = model.state_dict(keep_vars=True)
    alignment, gaps = _best(wanted, weights, strict=False)
    if not gaps.reshaped or gaps.size > len(gaps.reshaped):
        return None
    shapes = [(shape_of(wanted[key]), shape_of(weights[alignment.keys[key]])) for key in gaps.reshaped]
    if any(own[:1] != (width,) or own[1:] != stored[1:] for own, stored in shapes):
        return None
    widths = {stored[0] for _, stored in shapes}
    return widths.pop() if len(widths) == 1 else None


def _best(wanted: Mapping[str, Any], weights: Mapping[str, Any], *, strict: bool) -> tuple[Alignment, Gaps]:
    """The first alignment that fits, else the one that comes closest."""
    candidates = alignments(wanted, weights)
    plain = next(candidates)
    best = plain, gaps_of(plain, wanted, weights, strict=strict)
    while best[1].size and not strict and (alignment := next(candidates, None)) is not None:
        gaps = gaps_of(alignment, wanted, weights)
        best = (alignment, gaps) if gaps.size < best[1].size else best
    return best


def _load_aligned(
    model: nn.Module, wanted: Mapping[str, Any], weights: Mapping[str, Any], alignment: Alignment, gaps: Gaps
) -> Fit:
    stored = {**alignment.keys, **(gaps.twins or {})}
    given = OrderedDict((key, weights[name]) for key, name in stored.items())
    given.update((key, wanted[key]) for key in gaps.counters)
    _convert(model, given)
    _load(model, given, weights, alignment)
    return Fit(alignment.keys, (*alignment.adapted(), *gaps.adapted()))


def _load_by_its_own_rules(model: nn.Module, weights: Mapping[str, Any], alignment: Alignment) -> Fit | None:
    """Modules may rename what older versions of theirs stored while it is loaded; None if that does not help either."""
    inner = {key: alignment.inner(key) for key in weights}
    given = OrderedDict((alignment.around + name, weights[key]) for key, name in inner.items() if name is not None)
    trial = copy_of(model)
    try:
        _load(trial, given, weights, alignment, assign=True)
    except (RuntimeError, ValueError):
        return None
    # Nothing says which key went where but the memory that the trial took over.
    memory = {value.data_ptr(): key for key, value in weights.items() if isinstance(value, Tensor) and value.numel()}
    loaded = {key: value.data_ptr() for key, value in trial.state_dict().items() if isinstance(value, Tensor)}
    _convert(model, given)
    _load(model, given, weights, alignment)
    adapted = (*alignment.adapted(), "let the network's own modules rename keys of their older versions")
    return Fit({key: memory[place] for key, place in loaded.items() if place in memory}, adapted)


def _convert(model: nn.Module, given: Mapping[str, Any]) -> None:
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())


def _load(
    model: nn.Module, given: Any, weights: Mapping[str, Any], alignment: Alignment, *, assign: bool = False
) -> None:
    """Load keys that the network has, with the versions that the stored modules had."""
    own = model.state_dict()._metadata  # type: ignore[attr-defined]
    versions = {bare(name): version for name, version in getattr(weights, "_metadata", {}).items()}
    # A file that says nothing is as new as the network. Copies, because loading leaves notes of its own in them.
    given._metadata = {name: dict(versions.get(_stored_module(name, alignment), own[name])) for name in own}
    model.load_state_dict(given, assign=assign)
    for module in model.modules():
        if isinstance(module, LazyModuleMixin):
            _tell_width(module)


def _stored_module(name: str, alignment: Alignment) -> str:
    """The stored name of the module that has this name in the network."""
    inner = f"{bare(name)}.".removeprefix(alignment.around) if bare(name) else ""
    return f"{alignment.inside}{inner}".removesuffix(".")


def _tell_width(module: Any) -> None:
    """Give a lazy module the widths that its weights have; torch leaves them at 0."""
    if isinstance(module, CONV_TYPES):
        rows, columns = module.weight.shape[:2]
        module.in_channels = rows if module.transposed else columns * module.groups
    elif isinstance(module, nn.Linear):
        module.in_features = module.weight.shape[1]
    elif module.running_mean is not None:
        module.num_features = len(module.running_mean)
