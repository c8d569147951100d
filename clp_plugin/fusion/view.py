"""The fused view: a model as a list of linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from clp_plugin.fusion.graph import ChannelGraph, Node
from clp_plugin.types import Ints, LayerKind, Pairing


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One layer of channels that a score is computed on.

    Attributes:
        name: The module to silence when a channel is pruned: the norm of a fused or diagonal layer, else the conv.
        kind: ``fused`` (conv then BatchNorm), ``diagonal`` (a BatchNorm fed by anything else), ``conv`` (no BatchNorm
            before the next non-linearity), ``head`` (its channels are the logits': listed, never pruned).
        conv: Names of the convolutions (or linear maps) that the channels come from; several after a concatenation.
        norm: Name of the BatchNorm, or None.
        channels: Number of channels, K.
        source: ``(K,)`` position in ``conv`` that channel k comes from; -1 where it comes from no convolution.
        source_channel: ``(K,)`` output channel of that convolution; -1 where it comes from no convolution.
        why: One line for people.
        unprunable: Why a mask cannot silence its channels, or "".

    Example:
        >>> from clp_plugin import fuse
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> layer = fuse(model, (3, 3, 3)).layers[0]
        >>> layer.kind, layer.conv, layer.norm, layer.channels
        ('fused', ('0',), '1', 4)
    """

    name: str
    kind: LayerKind
    conv: tuple[str, ...]
    norm: str | None
    channels: int
    source: Ints
    source_channel: Ints
    why: str
    unprunable: str = ""


@dataclass(frozen=True, eq=False)
class FusedView:
    """All linear layers of a model, in the order of execution. ``print(view)`` shows them.

    Attributes:
        model: The bare network (see :func:`clp_plugin.networks.wrappers.unwrap`); the view holds no copy of any weight.
        layers: The linear layers.
        graphs: The channels that every channel depends on, in the run in eval mode and, where branches such as
            auxiliary heads open only in training mode, a second run that reaches them; empty for ``registration``.
        pairing: The rule that paired convolutions and norms: ``dataflow`` or ``registration``.
        inner_linear: Linear modules inside the network that no BatchNorm follows (attention, MLP): not scored.
        unreached: Convolutions and norms that no run executes.
        unscored: Name of what else is not scored, and why: a kernel that cannot be followed, or whose scale is undone.

    Example:
        >>> from clp_plugin import fuse
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> print(fuse(model, (3, 3, 3)))
        layer  kind      channels  why
        1      fused            4  fed by 0
        4      head             2  classifier head: listed, not pruned
        2 layers (1 fused, 1 head); found by following the tensors (real forward pass)
    """

    model: nn.Module
    layers: tuple[LinearLayer, ...]
    graphs: tuple[ChannelGraph, ...]
    pairing: Pairing = "dataflow"
    inner_linear: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    unscored: Mapping[str, str] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def layer(self, name: str) -> LinearLayer:
        """The layer of this name; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def call(self, module: str) -> tuple[int, Node]:
        """The first executed call of a convolution, linear map or norm: which graph it is in, and its node.

        Raises:
            KeyError: If no run executes it.
        """
        for position, graph in enumerate(self.graphs):
            for node in graph.nodes:
                if node.module == module:
                    return position, node
        raise KeyError(module)

    def counts(self) -> dict[str, int]:
        """Number of layers of each kind."""
        kinds = [layer.kind for layer in self.layers]
        return {kind: kinds.count(kind) for kind in ("fused", "diagonal", "conv", "head")}

    def left_out(self) -> dict[str, str]:
        """Name of everything with weights that is not scored, and why."""
        return {
            **self.unscored,
            **dict.fromkeys(self.inner_linear, "a linear map inside the network that no BatchNorm follows"),
            **dict.fromkeys(self.unreached, "never executed"),
        }

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=4)
        lines = [f"{'layer':<{width}}  kind      channels  why"]
        for layer in self.layers:
            why = f"{layer.why}; never pruned: {layer.unprunable}" if layer.unprunable else layer.why
            lines.append(f"{layer.name:<{width}}  {layer.kind:<8}  {layer.channels:>8}  {why}")
        counts = ", ".join(f"{n} {kind}" for kind, n in self.counts().items() if n)
        lines.append(f"{len(self.layers)} layers ({counts or 'none'}); found by {self._how()}")
        if self.inner_linear:
            lines.append(f"{len(self.inner_linear)} linear maps inside the network have no BatchNorm: not scored")
        lines += [f"not scored: {name}: {why}" for name, why in self.unscored.items()]
        if self.unreached:
            lines.append(f"never executed: {', '.join(self.unreached)}")
        return "\n".join(lines)

    def _how(self) -> str:
        return (
            f"following the tensors ({self.graphs[0].how})" if self.graphs else "registration order, the published rule"
        )
