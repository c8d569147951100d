"""Channel scores: the spectral norm of every channel's fused kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from clp_plugin.errors import ConfigError, ScoreError
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.networks.kinds import CONV_TYPES
from clp_plugin.scoring.kernels import batchnorm_gain, kernel
from clp_plugin.scoring.operator_norm import operator_norms
from clp_plugin.scoring.relative import TypicalScales, scaled_kernel
from clp_plugin.scoring.spectral import spectral_norms
from clp_plugin.types import Floats, NormKind, ScoreKind, Scores


def score(view: FusedView, *, score: ScoreKind = "paper", norm: NormKind = "reshaped") -> Scores:
    """Score every channel of every layer; no data, no threshold.

    Args:
        view: A model as :func:`clp_plugin.fusion.layers.fuse` returns it.
        score: ``paper``: sigma_k of the fused kernel W_k * gamma_k / sqrt(var_k + eps). ``relative``: sigma of
            W_k * diag(scale of the inputs) over sqrt(var_k + eps), the worst-case gain in units of the channel's own
            typical response; a function-preserving rescale of a channel and its readers leaves it alone.
        norm: ``reshaped``: of the kernel as a ``C_in/groups x positions`` matrix. ``exact``: of the convolution as an
            operator on its real input size, with stride and padding.

    Raises:
        ScoreError: If a layer's weights or statistics hold NaN, Inf or a negative variance; names the layer.
        ConfigError: If the published pairing is combined with anything but the published score.

    Source:
        CLP 4.1 and 4.4. Deviation from the published code: BatchNorm's eps is part of the scale (left out when
        ``view.pairing`` is ``registration``).

    Example:
        >>> from clp_plugin import fuse, score
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> _ = model[0].weight.data.fill_(1.0)  # each filter: 27 ones, of spectral norm sqrt(27)
        >>> score(fuse(model, (3, 3, 3))).sigma["1"].round(3).tolist()  # eps of the BatchNorm lowers it a little
        [5.196, 5.196, 5.196, 5.196]
    """
    published = view.pairing == "registration"
    if published and (score, norm) != ("paper", "reshaped"):
        raise ConfigError(f"parity mode has only score='paper', norm='reshaped'; found score={score!r}, norm={norm!r}")
    names = list(dict.fromkeys(conv for layer in view.layers for conv in layer.conv))
    scales = [TypicalScales(graph, view.modules) for graph in view.graphs] if score == "relative" else None
    conv_norms = dict(zip(names, _conv_norms(view, names, scales, norm), strict=True))
    sigma = {}
    for layer in view.layers:
        sigma[layer.name] = _checked(view, layer, _layer_scores(view, layer, conv_norms, scales))
    kinds = {layer.name: layer.kind for layer in view.layers}
    unprunable = frozenset(layer.name for layer in view.layers if layer.unprunable)
    return Scores(sigma, kinds, score, norm, view.pairing, unprunable)


def _conv_norms(view: FusedView, names: list[str], scales: list[TypicalScales] | None, norm: NormKind) -> list[Tensor]:
    """``(K,)`` float64 for every convolution."""
    if scales is None:
        kernels = [kernel(view.modules[name]) for name in names]
    else:
        kernels = [_scaled(view, name, scales) for name in names]
    if norm == "reshaped":
        return spectral_norms(kernels)
    norms = []
    for name, weight in zip(names, kernels, strict=True):
        module = view.modules[name]
        if isinstance(module, CONV_TYPES) and bool(weight.isfinite().all()):
            norms.append(operator_norms(weight, module, view.call(name)[1].input_shape[-(weight.ndim - 2) :]))
        else:
            norms += spectral_norms([weight])
    return norms


def _scaled(view: FusedView, name: str, scales: list[TypicalScales]) -> Tensor:
    position, node = view.call(name)
    return scaled_kernel(view.modules[name], scales[position], node)


def _layer_scores(
    view: FusedView, layer: LinearLayer, conv_norms: dict[str, Tensor], scales: list[TypicalScales] | None
) -> Floats:
    values = _through_convs(view, layer, lambda name: conv_norms[name].numpy())
    if scales is not None:
        values = _relative(view, layer, values, scales)
    elif layer.norm is not None:
        gain = batchnorm_gain(view.modules[layer.norm], with_eps=view.pairing == "dataflow").numpy()
        values = values * gain
    return values


def _through_convs(view: FusedView, layer: LinearLayer, of: Callable[[str], Floats]) -> Floats:
    """Each channel's value at the convolution that it comes from; 1 for a channel that comes from none."""
    values = np.ones(layer.channels)
    for position, name in enumerate(layer.conv):
        mine = layer.source == position
        values[mine] = of(name)[layer.source_channel[mine]]
    return values


def _relative(view: FusedView, layer: LinearLayer, values: Floats, scales: list[TypicalScales]) -> Floats:
    position, call = view.call(layer.name)
    if layer.norm is not None:
        own = layer.source < 0
        values[own] = scales[position].entering(call, layer.channels)[own]
        return np.asarray(values * batchnorm_gain(view.modules[layer.norm], with_gamma=False).numpy())
    typical = scales[position].values[call.first_id : call.first_id + layer.channels]
    return np.asarray(np.divide(values, typical, out=np.zeros_like(values), where=typical != 0))


def _checked(view: FusedView, layer: LinearLayer, values: Floats) -> Floats:
    offsets = _through_convs(view, layer, lambda name: _vector(view, name, "bias", layer.channels))
    finite = np.isfinite(values) & np.isfinite(offsets)
    if layer.norm is not None:  # an infinite variance is how a channel without affine parameters is silenced
        for part in ("weight", "bias", "running_mean"):
            finite &= np.isfinite(_vector(view, layer.norm, part, layer.channels))
        negative = np.flatnonzero(~finite & (_vector(view, layer.norm, "running_var", layer.channels) < 0))
        if len(negative):
            raise ScoreError(
                f"layer {layer.name!r}: the running variance of {layer.norm} is negative in {len(negative)} of "
                f"{layer.channels} channels (first: {negative[0]}), which no training leaves; the checkpoint is damaged, load "
                "a sound one"
            )
    broken = np.flatnonzero(~finite)
    if len(broken):
        parts = " or ".join([*layer.conv[:3], *([layer.norm] if layer.norm else [])])
        raise ScoreError(
            f"layer {layer.name!r}: the weights or statistics of {parts} hold NaN or Inf in {len(broken)} of "
            f"{layer.channels} channels (first: {broken[0]}); the checkpoint is damaged, load a sound one"
        )
    return values


def _vector(view: FusedView, module: str, part: str, channels: int) -> Floats:
    """A per-channel parameter or statistic; zeros where the module has none."""
    tensor = getattr(view.modules[module], part, None)
    if tensor is None:
        widths = (getattr(view.modules[module], width, 0) for width in ("out_channels", "out_features"))
        return np.zeros(max(channels, *widths))
    return np.asarray(tensor.detach().double().cpu().numpy())
