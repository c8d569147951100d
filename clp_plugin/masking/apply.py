"""Silence the channels of a mask, undo it bit by bit, save and replay it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clp_plugin.errors import MaskError, unknown_name
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.files.reading import read_json
from clp_plugin.masking.silence import require_silence, still_heard
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.kinds import CONV_TYPES, is_batchnorm
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.types import Bools, Mask

_SCHEMA = 1


@dataclass
class Undo:
    """Puts every changed number back, bit by bit. Also a context manager: the mask holds inside the block."""

    _restore: list[Callable[[], object]] = field(default_factory=list)

    def undo(self) -> None:
        """Restore the model; a second call does nothing."""
        with torch.no_grad():
            while self._restore:
                self._restore.pop()()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def overwrite(self, tensor: Tensor, index: Any, value: float) -> None:
        """Set ``tensor[index]`` and remember what was there."""
        before = tensor[index].clone()
        self._restore.append(lambda: tensor.__setitem__(index, before))
        tensor[index] = value


def masked(model: nn.Module, mask: Mask, *, keep_bias: bool = False, verify: Sequence[int] | None = None) -> nn.Module:
    """A copy of the bare network with the mask's channels silent; see :func:`apply_mask`.

    Args:
        model: The network, wrapped or not; unchanged.
        mask: Layer name to channels.
        keep_bias: Whether every bias stays, as :func:`apply_mask` explains.
        verify: Shape of one input, ``(C, H, W)``: run the copy on random inputs, and refuse a layer whose channels are not
            silent, or that a norm behind it makes heard again, or that puts out the logits.

    Raises:
        MaskError: If a layer cannot be silenced; names the first and the reason.

    Example:
        >>> import numpy as np
        >>> from clp_plugin import Mask, masked
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> masked(model, Mask({"1": np.array([True, False, False, False])}))[1].weight.tolist()
        [0.0, 1.0, 1.0, 1.0]
    """
    repaired = copy_of(unwrap(model))
    apply_mask(repaired, mask, keep_bias=keep_bias)
    if verify is not None:
        require_silence(repaired, mask, verify, keep_bias=keep_bias)
    return repaired


def apply_mask(model: nn.Module, mask: Mask, *, keep_bias: bool = False) -> Undo:
    """Silence channels in place.

    Args:
        model: The network, wrapped or not; shapes and names stay the same.
        mask: Layer name to channels. A BatchNorm's channel gets weight 0 and bias 0 (without affine parameters: running
            mean 0 and variance inf, which gives exactly 0 too); a convolution's a zero filter and bias.
        keep_bias: Leave every bias, so that a pruned channel puts it out everywhere: what the published codes of ANP,
            RNP, EP and BNP do.

    Returns:
        A handle whose ``undo()`` puts every changed tensor back.

    Raises:
        MaskError: If a layer does not exist, has another width, computes its weight (parametrization), or is heard all
            the same because it is no plain convolution or BatchNorm. Nothing is changed then.

    Source:
        CLP algorithm 1; the BatchNorm's bias is zeroed too, as in the published code.

    Example:
        >>> import numpy as np
        >>> from clp_plugin import Mask, apply_mask
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> undo = apply_mask(model, Mask({"1": np.array([True, False, False, False])}))
        >>> model[1].weight.tolist()
        [0.0, 1.0, 1.0, 1.0]
        >>> undo.undo()
        >>> model[1].weight.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    modules = dict(unwrap(model).named_modules())
    chosen = {name: channels for name, channels in mask.pruned.items() if channels.any()}
    for name, channels in mask.pruned.items():
        _check(modules, name, channels, will_prune=name in chosen)
    undo = Undo()
    with torch.no_grad():
        for name, channels in chosen.items():
            _silence(modules[name], torch.from_numpy(channels), undo, keep_bias=keep_bias)
    for name, channels in chosen.items():
        if reason := still_heard(modules, name, channels, keep_bias=keep_bias):
            undo.undo()
            raise MaskError(f"layer {name!r} cannot be silenced: {reason}")
    return undo


def save_mask(mask: Mask, path: Path) -> None:
    """Write a mask as JSON, atomically."""
    write_json_atomically(path, {"schema_version": _SCHEMA, "layers": mask.to_json()})


def load_mask(path: Path) -> Mask:
    """Read what :func:`save_mask` wrote.

    Raises:
        MaskError: If the file is missing or is no mask.
    """
    try:
        data: Any = read_json(path, raises=MaskError)
        if data["schema_version"] != _SCHEMA:
            raise MaskError(f"{path}: mask schema {data['schema_version']}, this version reads {_SCHEMA}")
        return Mask.from_json(data["layers"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise MaskError(
            f"{path}: expected a mask written by save_mask, found {type(error).__name__}: {error}"
        ) from error


def _check(modules: dict[str, nn.Module], name: str, channels: Bools, *, will_prune: bool) -> None:
    module = modules.get(name)
    if module is None:
        raise MaskError(f"the mask is for another model: {unknown_name('layer', name, list(modules)[1:])[:400]}")
    if not is_batchnorm(module) and not isinstance(module, CONV_TYPES):
        raise MaskError(f"layer {name!r}: expected a convolution or a BatchNorm, found {type(module).__name__}")
    width = _width(module)
    if channels.shape != (width,):
        raise MaskError(f"layer {name!r} has {width} channels, the mask has {channels.size}")
    if will_prune and "weight" not in module._parameters and "weight" not in module._buffers:
        raise MaskError(f"layer {name!r} computes its weight (parametrization): remove that before pruning it")


def _width(module: Any) -> int:
    return int(module.out_channels) if isinstance(module, CONV_TYPES) else int(module.running_var.numel())


def _silence(module: Any, channels: Tensor, undo: Undo, *, keep_bias: bool) -> None:
    if isinstance(module, CONV_TYPES):
        undo.overwrite(module.weight, _filters(module, channels), 0.0)
        if module.bias is not None and not keep_bias:
            undo.overwrite(module.bias, channels, 0.0)
    elif module.weight is not None:
        undo.overwrite(module.weight, channels, 0.0)
        if module.bias is not None and not keep_bias:
            undo.overwrite(module.bias, channels, 0.0)
    else:
        undo.overwrite(module.running_mean, channels, 0.0)
        undo.overwrite(module.running_var, channels, float("inf"))


def _filters(module: Any, channels: Tensor) -> Any:
    """Index of the filters of output channels: rows, but for transposed convolutions, which store (in, out / groups)."""
    if not module.transposed:
        return channels
    index = torch.nonzero(channels).flatten()
    per_group_out, per_group_in = module.out_channels // module.groups, module.in_channels // module.groups
    rows = (index // per_group_out * per_group_in)[:, None] + torch.arange(per_group_in)
    return rows, (index % per_group_out)[:, None]
