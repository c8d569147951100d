"""Entropy Pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.options import is_number, require_in_range
from clp_plugin.defenses.shared.preactivation import prune_outliers, require_finite, watch_norm_inputs
from clp_plugin.types import BudgetKind, Floats, Progress

# Two values of a channel that are closer than float32 can tell apart, with room for a sum's rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class EP:
    """Prune the channels whose input to BatchNorm, over poisoned training images, falls into two far groups.

    Triggered images drive a backdoor channel far from where benign ones leave it. Standardized, its values crowd into few
    bins of a histogram, and their entropy is low.

    Attributes:
        u: Prune below mean - u * std of the layer's entropies, 0 or more. The public code's default.
        bin_width: Width of the histogram's bins, in standard deviations of a channel. The public code's; BackdoorBench
            has 0.1.

    Raises:
        ConfigError: If a value is out of its range, before anything is run.

    Source:
        Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022; bin width, u, the
        spatial maximum and one batch of 500 images as in its public code.
        Ours: every value falls into a bin, while the public code loses those at the bins' edges and above the last full
        bin; the images are not augmented; the standard deviation of the entropies divides by K (the code: by K - 1), that
        over images by N; constant channels are left out.
    """

    u: float = 3.0
    bin_width: float = 0.01
    budget: ClassVar[BudgetKind] = "poisoned"
    chooses: ClassVar[str] = "u"

    def __post_init__(self) -> None:
        require_in_range(
            self,
            ("u", is_number(self.u) and self.u >= 0, "0 or more (the paper's code uses 3)"),
            ("bin_width", is_number(self.bin_width) and 0 < self.bin_width < math.inf, "above 0"),
        )

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Watch one pass over the poisoned images, score, set weights to 0. Deterministic: ``seed`` is not used.

        Under the oracle protocol u is chosen from 0 to 10 in steps of 0.5 by the test set.

        Raises:
            ConfigError: If there is no BatchNorm with weights, or there are fewer than 2 images.
            ScoreError: If the input of a BatchNorm is NaN or infinite.
        """
        maxima: dict[str, list[Tensor]] = {}

        def keep_maxima(name: str, maps: Tensor) -> None:
            maxima.setdefault(name, []).append(maps.amax(2).cpu())

        watch_norm_inputs(model, budget.poisoned, "ep", keep_maxima, progress)
        # The lower the entropy, the more suspicious.
        suspicion = {name: -entropies(_joined(name, parts), self.bin_width) for name, parts in maxima.items()}
        log = {"u": self.u, "bin_width": self.bin_width}
        return prune_outliers(model, suspicion, self.u, budget.judge, log)


def entropies(maxima: Floats, bin_width: float) -> Floats:
    """Entropy of each channel's distribution over images.

    A channel is standardized by its mean and population standard deviation over the images, then counted in bins
    ``[low + i * bin_width, low + (i + 1) * bin_width)``, where ``low`` is the lowest standardized value of the layer: all
    channels share one grid and each value falls into one bin, the highest too.

    Args:
        maxima: Largest value of each channel in each image, ``(images, channels)``, finite.
        bin_width: Width of a bin in standard deviations, above 0.

    Returns:
        ``(channels,)`` float64, in nats, from 0 to ln(images). NaN for a channel that is constant up to float32's
        rounding: there is nothing to standardize by, and it says nothing of poison.

    Source:
        EP (NeurIPS 2022): -sum p ln p.
    """
    values = np.asarray(maxima, dtype=np.float64)
    found = np.full(values.shape[1], np.nan)
    varies = np.ptp(values, axis=0) > _ROUNDING * np.abs(values).max(axis=0)
    if not varies.any():
        return found
    standardized = (values - values.mean(axis=0))[:, varies] / values[:, varies].std(axis=0)
    bins = np.floor((standardized - standardized.min()) / bin_width)
    found[varies] = [_entropy(np.unique(column, return_counts=True)[1]) for column in bins.T]
    return found


def _joined(name: str, parts: list[Tensor]) -> Floats:
    joined = torch.cat(parts)
    require_finite(name, joined)
    return joined.double().numpy()


def _entropy(counts: Any) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0
