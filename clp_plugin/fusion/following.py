"""Follow channels through a running model, operation by operation.

Each tensor has a *shadow*: an int32 tensor of the same shape that says, element by element, which channel of which
earlier operation it is. Operations that only move data (view, cat, slice, channel shuffle, ...) are replayed on the
shadows, so that provenance is exact for any layout and any in-place change is seen through every alias; all other
operations start a new node with fresh channel numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from clp_plugin.fusion.graph import UNKNOWN, ChannelGraph, Node
from clp_plugin.fusion.operations import COPIES, MOVES, is_channelwise
from clp_plugin.networks.kinds import CONV_TYPES, is_batchnorm
from clp_plugin.types import Ints

aten = torch.ops.aten


class ChannelFollower(TorchDispatchMode):
    """Keeps the shadows and writes the nodes while the model runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, so that torch need not import its compiler, which takes a second."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = ChannelGraph()
        self._shadow = WeakTensorKeyDictionary()
        self._next_id = 0
        self._inside: list[_Call] = []
        self._running: list[str] = []
        self._owner_of = np.zeros(0, dtype=np.int64)

    def add_input(self, image: torch.Tensor) -> None:
        """Follow a tensor ``(B, C, ...)`` from here on as the network's input."""
        node = self._new_node("input", "", image.shape[1], (), (), False, tuple(image.shape))
        self._attach(image, self._spread(node, image, 1))

    def starting(self, name: str) -> Any:
        """A hook for before a module's call, by whose name operations in it are recorded."""
        return lambda *_: self._running.append(name)

    def ending(self, *_: object) -> None:
        """The hook for after any module's call; the module around it goes on."""
        self._running.pop()

    def entering(self, name: str) -> Any:
        """A hook for before the call of a layer that is to be one node, whatever operations it is made of."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
            self._inside.append(_Call(name, module, tensors[0] if tensors else None))

        return hook

    def leaving(self, name: str, module: nn.Module) -> Any:
        """A hook for after such a call, which writes the layer's node if no operation in it did."""

        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            call = self._inside.pop()
            if call.recorded or call.input is None:
                return
            if is_batchnorm(module):
                node = self._layer_node("batchnorm", call, output.shape[1], call.input, 1)
                self._attach(output, self._spread(node, output, 1))
            elif isinstance(module, nn.Linear):
                node = self._layer_node("linear", call, output.shape[-1], call.input, call.input.ndim - 1)
                self._attach(output, self._spread(node, output, output.ndim - 1))

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        before = {id(t): self._shadow[t] for t in tensors if t in self._shadow}
        call = self._inside[-1] if self._inside else None
        if before and packet is aten.convolution and call is not None and isinstance(call.module, CONV_TYPES):
            output = func(*args, **kwargs)
            batch_first = args[0].ndim - 2 == len(args[3])
            channel_dim = 1 if batch_first else 0
            node = self._layer_node("conv", call, output.shape[channel_dim], args[0], channel_dim)
            self._attach(output, self._spread(node, output, channel_dim))
            call.recorded = True
            return output
        output = func(*args, **kwargs)
        if call is not None and (is_batchnorm(call.module) or isinstance(call.module, nn.Linear)):
            return output
        if not before:
            if not tensors or packet.__name__.startswith("new_") or packet.__name__.endswith("_like"):
                self._attach_unknown(output)
            return output
        if packet in MOVES or packet in COPIES:
            self._move(func, packet, args, kwargs, output)
        else:
            self._compute(func, packet, tensors, output)
        return output

    def _move(self, func: Any, packet: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Replay a data movement on the shadows."""
        if packet in COPIES:
            first = output[0] if isinstance(output, tuple) else output
            self._attach(first, self._shadow_or_unknown(args[0]).expand(first.shape))
            return
        shadows = tree_map(lambda a: self._shadow_or_unknown(a) if isinstance(a, torch.Tensor) else a, (args, kwargs))
        moved = func(*shadows[0], **shadows[1])
        if packet is aten.copy_:
            return
        is_view = any(r.alias_info is not None for r in func._schema.returns)
        outs, shadows_out = tree_flatten(output)[0], tree_flatten(moved)[0]
        for tensor, shadow in zip(outs, shadows_out, strict=True):
            if is_view:
                self._shadow[tensor] = shadow
            else:
                self._attach(tensor, shadow)

    def _compute(self, func: Any, packet: Any, tensors: list[torch.Tensor], output: Any) -> None:
        """Start a node for an operation that changes values."""
        shadows = [self._shadow[t] for t in tensors if t in self._shadow]
        parents = tuple(sorted({p for s in shadows for p in self._parents(s)}))
        outs = [t for t in tree_flatten(output)[0] if isinstance(t, torch.Tensor)]
        if not outs:
            return
        channelwise = is_channelwise(func)
        weighted = packet is aten.convolution or any(t.ndim > 1 and t not in self._shadow for t in tensors)
        structures = [s for s in map(channel_structure, sorted(shadows, key=lambda s: -s.numel())) if s is not None]
        dim = _output_dim(outs[0], structures, max(s.ndim for s in shadows)) if channelwise else None
        if not parents:
            for tensor in outs:
                self._write(tensor, torch.full(tuple(tensor.shape), UNKNOWN, dtype=torch.int32))
            return
        shape = tuple(tensors[0].shape)
        inputs = tuple(ids for _, ids in structures)
        if dim is None:
            kernel = weighted and not channelwise
            node = self._new_node(packet.__name__, "", 1, inputs, parents, False, shape, unknown_kernel=kernel)
        elif packet is aten.constant_pad_nd:
            self._write(outs[0], _along(torch.from_numpy(structures[0][1]), outs[0], dim))
            return
        else:
            width = outs[0].shape[dim]
            inputs = tuple(ids for ids in inputs if len(ids) in (1, width))
            node = self._new_node(packet.__name__, "", width, inputs, parents, True, shape)
        for tensor in outs:
            same = dim is not None and tensor.ndim > dim and tensor.shape[dim] == node.channels
            self._write(tensor, self._spread(node, tensor, dim if same else None))

    def channels_of(self, tensor: torch.Tensor) -> Ints:
        """Global channel numbers along a tensor's channel dimension; empty where it has none."""
        structure = channel_structure(self._shadow_or_unknown(tensor))
        return np.zeros(0, np.int64) if structure is None else structure[1]

    def _layer_node(self, op: str, call: _Call, channels: int, source: torch.Tensor, dim: int) -> Node:
        shadow = self._shadow_or_unknown(source)
        structure = channel_structure(shadow, prefer=dim)
        inputs = () if structure is None or structure[0] != dim else (structure[1],)
        return self._new_node(op, call.name, channels, inputs, self._parents(shadow), False, tuple(source.shape))

    def _new_node(
        self, op: str, module: str, channels: int, inputs: Any, parents: Any, channelwise: bool, shape: Any,
        *, unknown_kernel: bool = False,
    ) -> Node:  # fmt: skip
        within = self._running[-1] if self._running else ""
        node = Node(
            len(self.graph.nodes), op, module, self._next_id, channels, inputs, tuple(parents), channelwise, shape,
            unknown_kernel, within,
        )  # fmt: skip
        self.graph.nodes.append(node)
        self._owner_of = np.concatenate([self._owner_of, np.full(channels, node.index, dtype=np.int64)])
        self._next_id += channels
        return node

    def _spread(self, node: Node, tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
        ids = torch.arange(node.first_id, node.first_id + node.channels, dtype=torch.int32, device="cpu")
        return _along(ids[:1] if dim is None else ids, tensor, dim)

    def _attach(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Give a new tensor a shadow with its own strides, so that any view of it is one of the shadow too."""
        shadow = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=torch.int32, device="cpu")
        self._shadow[tensor] = shadow.copy_(values)

    def _write(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """New values: into the existing shadow when the operation was in place, so that aliases see them."""
        if tensor in self._shadow:
            self._shadow[tensor].copy_(values)
        else:
            self._attach(tensor, values)

    def _attach_unknown(self, output: Any) -> None:
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, torch.Tensor):
                self._attach(tensor, torch.full((), UNKNOWN, dtype=torch.int32, device="cpu"))

    def _shadow_or_unknown(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor in self._shadow:
            known: torch.Tensor = self._shadow[tensor]
            return known
        return torch.full(tuple(tensor.shape), UNKNOWN, dtype=torch.int32, device="cpu")

    def _parents(self, shadow: torch.Tensor) -> tuple[int, ...]:
        ids = np.unique(shadow.numpy())
        return tuple(np.unique(self._owner_of[ids[ids != UNKNOWN]]).tolist())

    def parents_of(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """Nodes that a tensor's elements come from."""
        return self._parents(self._shadow[tensor]) if tensor in self._shadow else ()


@dataclass
class _Call:
    """A running call of a module that may be a linear layer."""

    name: str
    module: nn.Module
    input: torch.Tensor | None
    recorded: bool = False


def channel_structure(shadow: torch.Tensor, prefer: int = 1) -> tuple[int, Ints] | None:
    """The dimension along which a shadow varies and its values there, or None if it varies along several.

    Args:
        shadow: Channel numbers, any shape.
        prefer: The dimension to name when the shadow varies along none.
    """
    if shadow.ndim == 0 or shadow.numel() == 0:
        return None
    order = dict.fromkeys([min(prefer, shadow.ndim - 1), shadow.ndim - 1, *range(shadow.ndim)])
    for dim in order:
        line = shadow[tuple(slice(None) if d == dim else 0 for d in range(shadow.ndim))]
        if bool((shadow == _along(line, shadow, dim)).all()):
            return dim, line.numpy().astype(np.int64)
    return None


def _along(values: torch.Tensor, like: torch.Tensor, dim: int | None) -> torch.Tensor:
    """``values`` laid along ``dim`` and broadcast to the shape of ``like``."""
    shape = [1] * like.ndim
    if dim is not None:
        shape[dim] = -1
    return values.to(torch.int32).reshape(shape).expand(tuple(like.shape))


def _output_dim(output: torch.Tensor, structures: list[tuple[int, Ints]], ndim: int) -> int | None:
    """The dimension of a channel-wise operation's output that holds the channels of its widest structured input."""
    for dim, ids in structures:
        places = [dim] if output.ndim == ndim else [dim, 1, output.ndim - 1, *range(output.ndim)]
        for place in places:
            if 0 <= place < output.ndim and output.shape[place] == len(ids):  # a full reduction has no dimension
                return place
    return None
