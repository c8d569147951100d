"""BatchNorm statistics Pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.norms import affine_norms
from clp_plugin.defenses.shared.options import is_number, require_in_range
from clp_plugin.defenses.shared.preactivation import prune_outliers, require_finite, watch_norm_inputs
from clp_plugin.types import BudgetKind, Floats, Progress

# For a BatchNorm whose eps is 0.
_SMALLEST = 1e-12


@dataclass(frozen=True)
class BNP:
    """Prune the channels whose running statistics do not fit benign images.

    Running statistics were gathered with poison among the images. Where a channel reacts to the trigger, they lie far
    from what benign images give.

    Attributes:
        u: Prune above mean + u * std of the layer's divergences, 0 or more. The public code's default.

    Raises:
        ConfigError: If u is out of its range, before anything is run.

    Source:
        Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022. Its public code takes
        one batch of 500 images, augmented; these are not. The standard deviation over channels divides by K (the code:
        by K - 1).
    """

    u: float = 3.0
    budget: ClassVar[BudgetKind] = "benign"
    chooses: ClassVar[str] = "u"

    def __post_init__(self) -> None:
        require_in_range(self, ("u", is_number(self.u) and self.u >= 0, "0 or more (the paper's code uses 3)"))

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Watch one pass over the benign images, score, set weights to 0. Deterministic: ``seed`` is not used.

        Under the oracle protocol u is chosen from 0 to 10 in steps of 0.5 by the test set.

        Raises:
            ConfigError: If there is no BatchNorm with weights, or there are fewer than 2 images.
            ScoreError: If the input of a BatchNorm, or its running statistics, are NaN or infinite.
        """
        moments: dict[str, Moments] = {}
        watch_norm_inputs(
            model,
            budget.benign,
            "bnp",
            lambda name, maps: moments.setdefault(name, Moments(maps.shape[1])).add(maps),
            progress,
        )
        norms = affine_norms(model, "bnp")
        divergences = {name: _of_layer(name, norms[name], seen) for name, seen in moments.items()}
        return prune_outliers(model, divergences, self.u, budget.judge, {})


class Moments:
    """Mean and variance of each channel over images and positions, gathered batch by batch in float64.

    Args:
        channels: Number of channels.

    Source:
        Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Take in ``(images, channels, positions)``, on any device."""
        count = maps.shape[0] * maps.shape[2]
        variance, mean = (part.cpu().double() for part in torch.var_mean(maps, dim=(0, 2), correction=0))
        total = self._count + count
        distance = mean - self.mean
        self._squares += variance * count + distance**2 * (self._count * count / total)
        self.mean += distance * (count / total)
        self._count = total

    @property
    def variance(self) -> Tensor:
        """``(channels,)``, divided by n - 1, as the variances that BatchNorm gathers are; needs 2 values or more."""
        return self._squares / (self._count - 1)


def divergence(mean: Floats, variance: Floats, running_mean: Floats, running_var: Floats, floor: float) -> Floats:
    """Kullback-Leibler divergence of N(mean, variance) from N(running_mean, running_var), channel by channel.

    Args:
        mean: Mean over benign images, ``(channels,)``.
        variance: Variance over benign images, ``(channels,)``, 0 or more.
        running_mean: The BatchNorm's own mean, ``(channels,)``.
        running_var: The BatchNorm's own variance, ``(channels,)``, 0 or more.
        floor: Smaller variances, those of dead channels, are taken for this; above 0. BatchNorm's own eps is the
            smallest that it can tell apart.

    Returns:
        ``(channels,)`` float64 in nats, 0 or more, finite.

    Source:
        BNP (NeurIPS 2022): ln(v2 / v1) / 2 + (v1 + (m1 - m2)^2) / (2 v2) - 1 / 2. One toolbox leaves out the half of the
        logarithm. The floor is ours.
    """
    first, second = np.maximum(variance, floor), np.maximum(running_var, floor)
    return np.asarray(np.log(second / first) / 2 + (first + (mean - running_mean) ** 2) / (2 * second) - 0.5)


def _of_layer(name: str, norm: Any, seen: Moments) -> Floats:
    running_mean, running_var = (part.detach().cpu().double() for part in (norm.running_mean, norm.running_var))
    moments = (seen.mean, seen.variance, running_mean, running_var)
    require_finite(name, torch.stack(moments))
    mean, variance, usual_mean, usual_variance = (part.numpy() for part in moments)
    return divergence(mean, variance, usual_mean, usual_variance, floor=max(float(norm.eps), _SMALLEST))
