"""NPD's result: the attacked network with a small layer in front of one of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clp_plugin.errors import CheckpointError

_CONVOLUTIONS = {"onlyconv": 1, "convbn": 1, "lightconv": 1, "twoconv": 2}
_NORMS = {"onlyconv": 0, "convbn": 1, "lightconv": 1, "twoconv": 2}


def plug_in(network: nn.Module, content: Mapping[str, Any], *, residual: bool, where: str) -> None:
    """Put NPD's layer before its module, in place.

    Args:
        network: The attacked network.
        content: Content of ``plug_layer.pt``: ``target_layer``, ``plug_name`` and ``plug_model``, a state dict.
        residual: Whether the module's input is added to the layer's output.
        where: The file, for messages.

    Raises:
        CheckpointError: If the layer is of a kind that is not stored as weights, or does not fit.
    """
    kind, target, state = (content.get(key) for key in ("plug_name", "target_layer", "plug_model"))
    if kind not in _CONVOLUTIONS or not isinstance(state, Mapping):
        raise CheckpointError(f"{where}: expected a plug-in layer of kind {', '.join(_CONVOLUTIONS)}, found {kind!r}")
    try:
        module = network.get_submodule(str(target))
    except AttributeError as error:
        raise CheckpointError(f"{where}: the network has no module {target!r}") from error
    parent, _, name = str(target).rpartition(".")
    layer = _layer(str(kind), state, where)
    setattr(network.get_submodule(parent), name, Plugged(layer, module, residual=residual))


class Plugged(nn.Module):
    """A layer, then the module that stood here."""

    def __init__(self, layer: nn.Module, module: nn.Module, *, residual: bool) -> None:
        super().__init__()
        self.layer, self.module, self.residual = layer, module, residual

    def forward(self, x: Tensor) -> Tensor:
        changed = self.layer(x)
        out: Tensor = self.module(changed + x if self.residual else changed)
        return out


def _layer(kind: str, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """1x1 convolutions, each with a BatchNorm if the kind has them."""
    first = state.get("0.weight")
    if not isinstance(first, Tensor) or first.ndim != 4:
        raise CheckpointError(f"{where}: expected the weights of a plug-in layer, found the keys {', '.join(state)}")
    channels = first.shape[0]
    layer = nn.Sequential()
    for number in range(_CONVOLUTIONS[kind]):
        layer.append(nn.Conv2d(channels, channels, 1, bias=False))
        if number < _NORMS[kind]:
            layer.append(nn.BatchNorm2d(channels))
    try:
        layer.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(
            f"{where}: the plug-in layer's weights do not fit: {' '.join(str(error).split())}"
        ) from error
    return layer.eval()
