"""Hiding from CLP: no channel's Lipschitz constant may stand out of its layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.selection.outliers import PRUNED_KINDS

from ..attacks.base import Attack
from ..scene import Scene
from ..training.hooks import Batch, BatchHook
from .base import Evasion

_TINY = 1e-12


@dataclass(frozen=True)
class SigmaEvasion(Evasion):
    """Adds to the loss what every channel's sigma exceeds its layer's mean + ``bound`` * std by, in units of that mean.

    So CLP at a u of ``bound`` or more finds nothing to prune, as far as the term is obeyed. Sigma is the very score of CLP:
    the spectral norm of the reshaped kernel times the gain of its BatchNorm with its running statistics.

    Attributes:
        weight: Weight of the term beside the cross-entropy.
        bound: Standard deviations that a channel may stand out by.

    Source:
        Ours. That an attacker could regularise the channel Lipschitz constant is the obvious answer to CLP (ECCV 2022).
    """

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.03
    bound: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5

    def hook(self, model: nn.Module, attack: Attack, scene: Scene) -> SigmaHook:
        return SigmaHook(self, fuse(model, scene.images.pixels.shape[1:]))


class SigmaHook(BatchHook):
    """Adds the term to every batch's penalty."""

    def __init__(self, options: SigmaEvasion, view: FusedView) -> None:
        self.options, self.view = options, view
        self.layers = [layer for layer in view.layers if layer.kind in PRUNED_KINDS]

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        excesses = [excess(channel_sigma(self.view, layer), self.options.bound) for layer in self.layers]
        return batch.penalised(self.options.weight * torch.stack(excesses).sum())


def excess(sigma: Tensor, bound: float) -> Tensor:
    """The sum of what scores exceed mean + ``bound`` * std by, over the mean.

    Mean and std are constants to the gradient: the z-score of a lone outlier hardly changes with its size, and raising
    all others is no way to lower it.

    Args:
        sigma: Scores of one layer, ``(K,)``.
        bound: Standard deviations (of the population) that a score may stand out by.
    """
    mean, std = sigma.detach().mean(), sigma.detach().std(correction=0)
    return F.relu(sigma - (mean + bound * std)).sum() / mean.clamp(min=_TINY)


def channel_sigma(view: FusedView, layer: LinearLayer) -> Tensor:
    """The scores of a layer as :func:`clp_plugin.scoring.lipschitz.score` has them, ``(K,)``, with a gradient.

    Raises:
        ConfigError: If a kernel holds NaN or infinity.
    """
    norm: Any = view.modules[str(layer.norm)]
    sigma: Tensor = norm.weight.abs() * (norm.running_var + norm.eps).rsqrt()
    for position, name in enumerate(layer.conv):
        mine = torch.from_numpy(layer.source == position).to(sigma.device)
        channels = torch.from_numpy(layer.source_channel).to(sigma.device)[mine]
        norms = _spectral_norms(view.modules[name].get_parameter("weight"))[channels]
        sigma = sigma.masked_scatter(mine, sigma[mine] * norms)
    return sigma


def _spectral_norms(kernels: Tensor) -> Tensor:
    """Largest singular value of each ``C x positions`` kernel, ``(K,)``.

    The gradient leaves a kernel's Frobenius norm alone: the BatchNorm undoes any scale of the kernel, so that shrinking it
    would lower no score once the running variance has followed.
    """
    matrices = kernels.flatten(2) if kernels.ndim > 2 else kernels[..., None]
    frobenius = torch.linalg.matrix_norm(matrices).clamp(min=_TINY)[:, None, None]
    matrices = matrices * (frobenius.detach() / frobenius)
    if not bool(matrices.isfinite().all()):
        raise ConfigError("training diverged: a kernel holds NaN or infinity; lower lr or the evasion's weight")
    largest: Tensor = torch.linalg.eigvalsh(matrices.transpose(1, 2) @ matrices)[:, -1]
    return largest.clamp(min=_TINY).sqrt()
