"""Matching the stored keys of a checkpoint with the keys of a network, and listing what is left over on either side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

# Components of keys that DataParallel, torch.compile, FSDP and activation checkpointing put in.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What the layers of torch learn or measure: an unknown tensor of such a name belongs to a layer that the network lacks.
_LEARNED = ("weight", "bias", "running_mean", "running_var")
_CONSTANT = 16  # most elements of a counter, or of the constants of a normalization
# torchvision before 0.3 wrote `denselayer1.norm.1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")
_SHOWN = 3


@dataclass(frozen=True)
class Alignment:
    """One way to take each key of the network from a stored one.

    Attributes:
        keys: Key of the network to stored key.
        inside: The beginning of all stored keys, wrappers' components left out.
        around: The beginning of all keys of the network, wrappers' components left out.
    """

    keys: Mapping[str, str]
    inside: str = ""
    around: str = ""

    def adapted(self) -> Iterator[str]:
        """Say what was done to the keys, a phrase each."""
        if self.inside:
            yield f"read the keys below the prefix {self.inside!r}"
        if self.around:
            yield f"put the keys below the network's {self.around!r}"
        if any(_OLD_DENSENET.search(stored) and not _OLD_DENSENET.search(key) for key, stored in self.keys.items()):
            yield "renamed keys of an old torchvision layout"
        unlike = {part for key, stored in self.keys.items() for part in set(key.split(".")) ^ set(stored.split("."))}
        if dropped := [f"'{part}.'" for part in _WRAPPERS if part in unlike]:
            yield f"passed over the wrappers' {', '.join(dropped)}"

    def inner(self, stored: str) -> str | None:
        """The key below the network's top that a stored key names; None for one outside of the prefix."""
        key = _modern(bare(stored))
        return key.removeprefix(self.inside) if key.startswith(self.inside) else None


@dataclass(frozen=True)
class Gaps:
    """The keys of either side that an alignment leaves without a partner, or with one that does not fit.

    Attributes:
        missing: Keys of the network for which nothing is stored.
        reshaped: Keys of the network whose stored tensor has another shape.
        refused: Stored keys of layers that the network lacks.
        ballast: Stored keys that no module wants, and that change nothing that is computed.
        outside: Stored keys that do not begin with the alignment's prefix.
        twins: Key of the network to the stored key of the same tensor, which has two names.
        counters: Counters of batches that files older than torch 0.4.1 lack; nothing here depends on them.
    """

    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    refused: tuple[str, ...]
    ballast: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    twins: Mapping[str, str] | None = None
    counters: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many keys stand in the way."""
        return len(self.missing) + len(self.reshaped) + len(self.refused)

    def adapted(self) -> Iterator[str]:
        """Say what was filled in and passed over, a phrase each."""
        if self.twins:
            yield f"took {_listed(self.twins)} from the same tensor's other name"
        if self.ballast:
            yield f"left out {_listed(self.ballast)}, which no module wants"
        if self.outside:
            tops = dict.fromkeys("".join(key.partition(".")[:2]) for key in self.outside)
            yield f"left out {len(self.outside)} tensors beside it: {_listed(tops)} (--key takes another part)"

    def first(self, wanted: Mapping[str, Any], weights: Mapping[str, Any], keys: Mapping[str, str]) -> str:
        """The first key, in the order of the network, that is absent or of another shape; then keys that nobody wants."""
        counts = (
            f"in all {len(self.reshaped)} of another shape, {len(self.missing)} missing, {len(self.refused)} unexpected"
        )
        extra = next((key for key in weights if key not in keys.values()), None)
        unexpected = f"the checkpoint has {extra!r} {shape_of(weights[extra])}" if extra is not None else ""
        first = next((key for key in wanted if key in self.missing or key in self.reshaped), None)
        if first is None:
            return f"the checkpoint has {_listed(self.refused)}, which the architecture lacks ({counts})"
        if first in self.reshaped:
            found = f"{shape_of(wanted[first])}, the checkpoint has {shape_of(weights[keys[first]])}"
            return f"for {first!r} the architecture has {found} ({counts})"
        tail = f", {unexpected} instead" if extra is not None else ""
        return f"the architecture has {first!r} {shape_of(wanted[first])}{tail} ({counts})"


def alignments(wanted: Mapping[str, Any], weights: Mapping[str, Any]) -> Iterator[Alignment]:
    """Every way to read the stored keys, the plainest first.

    Args:
        wanted: The network's state dict.
        weights: Stored key to tensor.
    """
    yield Alignment({key: key for key in wanted if key in weights})
    inner = _unambiguous(bare, wanted)
    stored = _unambiguous(lambda key: _modern(bare(key)), weights)
    anchor = next((key for key in inner if key.endswith("weight")), next(iter(inner), ""))
    for around in _common_prefixes(inner):
        end = anchor.removeprefix(around)
        for inside in [key.removesuffix(end) for key in stored if key == end or key.endswith(f".{end}")]:
            pairs = ((key, inside + name.removeprefix(around)) for name, key in inner.items())
            yield Alignment({key: stored[name] for key, name in pairs if name in stored}, inside, around)


def gaps_of(
    alignment: Alignment, wanted: Mapping[str, Any], weights: Mapping[str, Any], *, strict: bool = False
) -> Gaps:
    """The keys of either side that an alignment leaves without a partner, or with one that does not fit.

    Args:
        alignment: One of :func:`alignments`.
        wanted: The network's state dict with its parameters themselves, so that tied ones are the same objects.
        weights: Stored key to tensor.
        strict: Count keys as open that are otherwise passed over.
    """
    keys = alignment.keys
    absent = [key for key in wanted if key not in keys]
    used = set(keys.values())
    extra = [key for key in weights if key not in used]
    reshaped = tuple(key for key, stored in keys.items() if not _same_shape(wanted[key], weights[stored]))
    if strict:
        return Gaps(tuple(absent), reshaped, tuple(extra))
    names = {id(wanted[key]): stored for key, stored in keys.items()}
    twins = {key: names[id(wanted[key])] for key in absent if id(wanted[key]) in names}
    counters = tuple(key for key in absent if key.endswith("num_batches_tracked"))
    tops = {bare(key).removeprefix(alignment.around).partition(".")[0] for key in wanted}
    inner = {key: alignment.inner(key) for key in extra}
    ballast = tuple(key for key, name in inner.items() if name is not None and _is_ballast(name, weights[key], tops))
    outside = tuple(key for key, name in inner.items() if name is None)
    return Gaps(
        missing=tuple(key for key in absent if key not in twins and key not in counters),
        reshaped=reshaped,
        refused=tuple(key for key in extra if key not in ballast and key not in outside),
        ballast=ballast,
        outside=outside,
        twins=twins,
        counters=counters,
    )


def bare(key: str) -> str:
    """A key or a module's name without the components of wrappers."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of a tensor, ``()`` of anything else and of what takes its shape from the weights."""
    return () if is_lazy(value) else tuple(getattr(value, "shape", ()))


def _same_shape(wanted: Any, stored: Any) -> bool:
    return is_lazy(wanted) or shape_of(wanted) == shape_of(stored)


def _is_ballast(inner: str, value: Any, tops: Iterable[str]) -> bool:
    """Whether a tensor that the network lacks can be left out without changing what the network computes.

    It can if it stands in a module beside the network's (a loss, an auxiliary head), is not of floating point (indices,
    masks, counters), or is so small and so named that it is a counter or a normalization's constant. A further layer in
    a chain that the network has cannot: the checkpoint is of a larger network.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    top, dot, _ = inner.partition(".")
    if dot and top not in tops and not top.isdigit():
        return True
    return value.numel() <= _CONSTANT and inner.rpartition(".")[2] not in _LEARNED


def _modern(key: str) -> str:
    return _OLD_DENSENET.sub(r"\1\2.", key)


def _unambiguous(name: Any, keys: Iterable[str]) -> dict[str, str]:
    """Name to key; the keys themselves where two have the same name."""
    originals = list(keys)
    named = {name(key): key for key in originals}
    return named if len(named) == len(originals) else {key: key for key in originals}


def _common_prefixes(keys: Iterable[str]) -> list[str]:
    """The beginnings that all dotted keys share: ``""``, ``"1."``, ``"1.features."``, ..."""
    split = [key.split(".")[:-1] for key in keys]
    prefixes = [""]
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        prefixes.append(f"{prefixes[-1]}{parts[0]}.")
    return prefixes


def _listed(keys: Iterable[str]) -> str:
    """The first few keys, and how many more there are."""
    names = list(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
