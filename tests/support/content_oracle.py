"""Which convolution each norm channel comes from, found by comparing the content of real tensors.

Random float64 maps are all different, so an input channel of a norm equals an output channel of a convolution bit by bit
only if it is that channel. Knows nothing of shadows, aten or module order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clp_plugin.fusion.view import FusedView

CONVS = (nn.modules.conv._ConvNd, nn.Linear)


def norm_feeds(model: nn.Module, norms: Sequence[str], shape: Sequence[int]) -> dict[str, list[set[tuple[str, int]]]]:
    """For every norm and input channel of its first call: the (convolution, channel) with the same content."""
    made: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
    feeds: dict[str, list[set[tuple[str, int]]]] = {}
    handles = []

    def keep(name: str, maps: Tensor, dim: int) -> None:
        for k, channel in enumerate(maps.movedim(dim, 0).flatten(1)):
            made[channel.numpy().tobytes()].add((name, k))

    def read(name: str, maps: Tensor) -> None:
        if name not in feeds:
            feeds[name] = [set(made.get(c.numpy().tobytes(), ())) for c in maps.movedim(1, 0).flatten(1)]

    for name, module in model.named_modules():
        if isinstance(module, CONVS):
            dim = -1 if isinstance(module, nn.Linear) else 1
            handles.append(module.register_forward_hook(lambda _m, _a, out, n=name, d=dim: keep(n, out, d)))
        elif name in norms:
            handles.append(module.register_forward_pre_hook(lambda _m, args, n=name: read(n, args[0])))
    image = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return feeds


def disagreements(view: FusedView, model: nn.Module, shape: Sequence[int]) -> list[str]:
    """Norm channels whose origin by content differs from the view's; layers whose maps were reshaped are left out."""
    found = []
    norms = [layer.norm for layer in view.layers if layer.norm is not None]
    for name, feeds in norm_feeds(model, norms, shape).items():
        layer = view.layer(name)
        if layer.kind == "fused" and not any(feeds):
            continue  # the content was reshaped on the way (flatten before BatchNorm1d): not comparable
        if layer.kind == "diagonal" and "different inputs" in layer.why:
            continue
        for k, feed in enumerate(feeds):
            position = layer.source[k]
            named = {(layer.conv[position], int(layer.source_channel[k]))} if position >= 0 else set()
            if not named <= feed or (not named and feed):
                found.append(f"{name}[{k}]: view {named or 'no convolution'}, content {feed or 'no convolution'}")
    return found
