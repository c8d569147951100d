"""Runs a network again and again on one batch while its weights change: nothing before the first change is computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

# Which call of which module, counted inside each call of its parent: the same in every run, whatever is left out before.
Call = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """Which outputs are worth keeping.

    Attributes:
        keep: Calls whose outputs were handed out again.
        written: Of these, the calls whose output is changed in place later on: kept as copies.
    """

    keep: frozenset[Call] = frozenset()
    written: frozenset[Call] = frozenset()


@dataclass
class _Kept:
    output: Tensor
    version: int


@dataclass
class Rehearsal:
    """What a run on a few images shows of a network.

    Attributes:
        order: Names of modules in the order of their first call.
        used: Bytes an output, of calls that were handed out again.
        written: Calls whose output was changed in place afterwards.
    """

    order: dict[str, None] = field(default_factory=dict)
    used: dict[Call, int] = field(default_factory=dict)
    written: set[Call] = field(default_factory=set)

    def plan(self, scale: float, most: int) -> Plan:
        """Keep the smallest outputs first, as many as fit: any choice is right, it only costs time.

        Args:
            scale: Images of a batch over images of the rehearsal.
            most: Bytes.
        """
        keep: set[Call] = set()
        left = most / scale
        for call, size in sorted(self.used.items(), key=lambda item: item[1]):
            if size > left:
                break
            left -= size
            keep.add(call)
        return Plan(frozenset(keep), frozenset(self.written & keep))


class Replay:
    """A network whose modules hand out what they returned before, until the first one whose weights have changed.

    A context manager: inside, the modules' ``forward`` is replaced. Results are bit by bit those of a plain run, because
    what is handed out was computed by the same operations on the same inputs. Not replayed, but run: modules that change
    their input in place, return it or a part of it, or return anything but a tensor. It cannot see that a module uses the
    weights of another one outside its own parent; compare with a plain run where that matters.
    """

    def __init__(self, network: nn.Module, plan: Plan | None = None) -> None:
        """Prepare.

        Args:
            network: In eval mode, without wrappers; runs must be under ``torch.no_grad()``.
            plan: What to keep; None keeps everything, and learns what is worth it in ``rehearsal``.
        """
        self.rehearsal = Rehearsal()
        self._network, self._plan = network, plan
        self._modules = {
            name: module
            for name, module in network.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule)
        }
        self._before: dict[str, Any] = {}
        self._kept: dict[Call, _Kept] = {}
        self._reset(frozenset())

    def __enter__(self) -> Replay:
        for name, module in self._modules.items():
            self._before[name] = module.__dict__.get("forward")
            module.__dict__["forward"] = partial(self._call, name, module.forward)
        return self

    def __exit__(self, *_: object) -> None:
        for name, module in self._modules.items():
            del module.__dict__["forward"]
            if self._before[name] is not None:
                module.__dict__["forward"] = self._before[name]

    def forget(self) -> None:
        """Another batch follows."""
        self._kept.clear()

    def run(self, images: Tensor, changed: Iterable[str]) -> Any:
        """What the network returns.

        Args:
            images: The same as in the last run, unless :meth:`forget` was called.
            changed: Names of the modules that hold a weight that is not what it was in the last run.
        """
        self._reset(frozenset(changed))
        output = self._network(images)
        self._drop_untrue()
        if self._plan is None:
            self._drop_written()
        return output

    def _reset(self, changed: frozenset[str]) -> None:
        self._changed = changed
        self._closed = {".".join(parts[:i]) for parts in (c.split(".") for c in changed) for i in range(len(parts) + 1)}
        self._dirty = not self._kept or "" in changed
        self._handed: set[Call] = set()
        self._stored: set[Call] = set()
        self._at: Call = ()
        self._counts: Counter[str] = Counter()

    def _call(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = (*self._at, (name, self._counts[name]))
        self._counts[name] += 1
        if not self._dirty:
            if name in self._changed:
                self._dirty = True
            elif name not in self._closed and call in self._kept:
                return self._hand_out(call)
        self.rehearsal.order.setdefault(name)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        versions = [_version(t) for t in tensors]
        outside = self._at, self._counts
        self._at, self._counts = call, Counter()
        output = forward(*args, **kwargs)
        self._at, self._counts = outside
        if self._wants(call) and _is_new(output, tensors) and versions == [_version(t) for t in tensors]:
            self._keep(call, output)
        return output

    def _wants(self, call: Call) -> bool:
        return self._plan is None or call in self._plan.keep

    def _keep(self, call: Call, output: Tensor) -> None:
        kept = output.clone() if self._is_written(call) else output
        self._kept[call] = _Kept(kept, _version(kept))
        self._stored.add(call)

    def _hand_out(self, call: Call) -> Tensor:
        self._handed.add(call)
        kept = self._kept[call].output
        if self._plan is None:
            self.rehearsal.used[call] = kept.numel() * kept.element_size()
        return kept.clone() if self._is_written(call) else kept

    def _is_written(self, call: Call) -> bool:
        return call in (self.rehearsal.written if self._plan is None else self._plan.written)

    def _drop_untrue(self) -> None:
        """Only what this run stored or handed out, and what lies inside the latter, is still true."""
        self._kept = {
            call: kept
            for call, kept in self._kept.items()
            if call in self._stored or any(call[:depth] in self._handed for depth in range(1, len(call) + 1))
        }

    def _drop_written(self) -> None:
        written = {call for call, kept in self._kept.items() if _version(kept.output) != kept.version}
        self.rehearsal.written |= written
        for call in written:
            del self._kept[call]


def holders(network: nn.Module, name: str) -> set[str]:
    """Names of the modules that hold a tensor of module ``name``: itself, and those that share a weight with it."""
    own = {t.untyped_storage().data_ptr() for t in _tensors(network.get_submodule(name))}
    return {
        other
        for other, module in network.named_modules(remove_duplicate=False)
        if any(t.untyped_storage().data_ptr() in own for t in _tensors(module))
    }


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _is_new(output: Any, inputs: list[Tensor]) -> bool:
    """A tensor with memory of its own, so that handing out another one of the same values makes no difference."""
    if type(output) is not Tensor:
        return False
    place = output.untyped_storage().data_ptr()
    return all(place != t.untyped_storage().data_ptr() for t in inputs)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)
