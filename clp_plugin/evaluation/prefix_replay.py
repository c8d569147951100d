"""Run one batch through a network many times, with other weights each time, without computing again what has not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from clp_plugin.networks.kinds import CONV_TYPES, is_batchnorm
from clp_plugin.networks.outputs import logits_of

KEEP_BYTES = 2 << 30  # of one batch's outputs; what lies behind is computed again


@dataclass
class PrefixReplay:
    """Remembers the outputs of convolutions, linear maps and norms of one batch, in the order of their calls.

    Everything between them (activations, sums, pooling) runs as always, so that in-place operations and branches do what
    they do without this class.

    Attributes:
        calls: Names of the modules as called in the last run.
    """

    calls: list[str] = field(default_factory=list)
    _kept: list[Tensor] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)
    _changed_later: set[int] = field(default_factory=set)
    _position: int = 0
    _unchanged: int = 0
    _wanted: int = 0
    _bytes: int = 0

    def new_batch(self, wanted: int) -> None:
        """Forget all outputs.

        Args:
            wanted: Number of calls, from the first, whose outputs will be asked for again.
        """
        self._kept, self._versions, self._bytes, self._wanted = [], [], 0, wanted

    def run(self, network: nn.Module, batch: Tensor, unchanged: int) -> Tensor:
        """The network's logits; the first ``unchanged`` calls give what they gave in the run before.

        Args:
            network: A network with :func:`watched` around it, under ``torch.no_grad()``.
            batch: The batch of the run before, unless :meth:`new_batch` was called.
            unchanged: Number of calls, from the start, that no changed weight can reach.
        """
        self._position, self._unchanged = 0, min(unchanged, len(self._kept))
        del self._kept[self._unchanged :], self._versions[self._unchanged :]
        self._bytes = sum(tensor.nbytes for tensor in self._kept)
        self.calls = self.calls[: self._unchanged]
        logits = logits_of(network(batch))
        self._forget_what_was_overwritten()
        return logits

    def call(self, name: str, compute: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Called by a watched module instead of computing."""
        place, self._position = self._position, self._position + 1
        if place < self._unchanged:
            kept = self._kept[place]
            return kept.clone() if place in self._changed_later else kept
        output = compute(*args, **kwargs)
        self.calls.append(name)
        # Outputs are kept without a gap, so that a prefix of the calls can be replayed.
        if place == len(self._kept) and place < self._wanted and self._bytes + output.nbytes <= KEEP_BYTES:
            self._kept.append(output.clone() if place in self._changed_later else output)
            self._versions.append(self._kept[place]._version)
            self._bytes += output.nbytes
        return output

    def _forget_what_was_overwritten(self) -> None:
        """``x += y`` may change an output after it was returned: from now on such an output is kept as a copy."""
        changed = [place for place, kept in enumerate(self._kept) if kept._version != self._versions[place]]
        if changed:
            self._changed_later.update(changed)
            del self._kept[changed[0] :], self._versions[changed[0] :]


@contextmanager
def watched(network: nn.Module, replay: PrefixReplay) -> Iterator[None]:
    """Convolutions, linear maps and norms of ``network`` go through ``replay`` inside the block."""
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (*CONV_TYPES, nn.Linear)) or is_batchnorm(module)
    ]
    own = {name: module.__dict__["forward"] for name, module in found if "forward" in module.__dict__}
    try:
        for name, module in found:
            module.forward = _through(replay, name, module.forward)
        yield
    finally:
        for name, module in found:
            module.__dict__.pop("forward", None)
            if name in own:
                module.forward = own[name]


def _through(replay: PrefixReplay, name: str, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return replay.call(name, compute, *args, **kwargs)

    return forward


def shared_prefix(calls: Sequence[str], changed: set[str]) -> int:
    """How many calls from the start come before the first of a changed module; none if one was never called by itself."""
    if not changed <= set(calls):
        return 0
    return next((place for place, name in enumerate(calls) if name in changed), len(calls))


def sharing(network: nn.Module) -> dict[str, set[str]]:
    """Module name to the modules that hold one of its tensors: itself, and those whose weights are tied to its own."""
    places = {
        name: {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(False), *module.buffers(False))}
        for name, module in network.named_modules()
    }
    holders: dict[int, set[str]] = {}
    for name, own in places.items():
        for place in own:
            holders.setdefault(place, set()).add(name)
    return {name: {name}.union(*(holders[place] for place in own)) for name, own in places.items()}
