"""Selecting the channels to prune: scores become a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clp_plugin.errors import ConfigError
from clp_plugin.types import Bools, Floats, LayerKind, Mask, Scores

PRUNED_KINDS: tuple[LayerKind, ...] = ("fused", "diagonal")
_KINDS: tuple[LayerKind, ...] = (*PRUNED_KINDS, "conv")


def select(
    scores: Scores, u: float, *, layers: Sequence[LayerKind] = PRUNED_KINDS, unbiased: bool | None = None
) -> Mask:
    """Prune channel k of layer l when sigma_k > mean_l + u * std_l.

    Args:
        scores: One score per channel, as :func:`clp_plugin.scoring.lipschitz.score` returns them.
        u: Number of standard deviations, 0 or more.
        layers: The kinds of layers to prune: ``fused``, ``diagonal`` and, if asked for, ``conv``. Pruning convolutions
            that no BatchNorm follows cost networks of strangers up to 21 points of accuracy for nothing.
        unbiased: Divide by K - 1 in the standard deviation, as the published code does; None follows the scores'
            pairing (population, the paper's, for ``dataflow``; unbiased for ``registration``).

    Returns:
        A mask that names every layer of these kinds. A layer with fewer than 2 channels or with equal scores prunes nothing.

    Raises:
        ConfigError: If u is negative or not a number, or ``layers`` names another kind.

    Source:
        CLP 4.5 and algorithm 1. The published code leaves convolutions without BatchNorm alone too.

    Example:
        >>> import numpy as np
        >>> from clp_plugin import Scores, select
        >>> select(Scores({"conv": np.array([1.0, 1.0, 1.0, 9.0])}), u=1.5).indices()
        {'conv': [3]}
    """
    if not u >= 0:
        raise ConfigError(f"u must be 0 or more (the paper uses 3 to 5), found {u}")
    by_code = scores.pairing == "registration" if unbiased is None else unbiased
    chosen = scores.prunable(parse_layers(",".join(layers)))
    return Mask({name: outliers(scores.sigma[name], u, unbiased=by_code) for name in chosen})


def parse_layers(text: str) -> tuple[LayerKind, ...]:
    """Kinds of layers to prune, from a list such as ``fused,diagonal,conv``.

    Raises:
        ConfigError: If it names anything else, or nothing.
    """
    wanted = [part.strip() for part in text.split(",")]
    unknown = [part for part in wanted if part not in _KINDS]
    if unknown:
        raise ConfigError(
            f"layers: expected a list of {', '.join(_KINDS)} such as fused,diagonal; found {unknown[0]!r}"
        )
    return tuple(kind for kind in _KINDS if kind in wanted)


def z_scores(sigma: Floats, *, unbiased: bool = False) -> Floats:
    """How many standard deviations each channel lies above its layer's mean, ``(K,)``; zeros where all are equal."""
    if is_constant(sigma):
        return np.zeros(len(sigma))
    return np.asarray((sigma - sigma.mean()) / sigma.std(ddof=int(unbiased)))


def outliers(values: Floats, u: float, *, unbiased: bool = False) -> Bools:
    """Tell which of a layer's channels lie above mean + u * std of its finite values.

    Args:
        values: ``(channels,)``, more suspicious if larger; NaN or infinite for a channel of which nothing is known.
        u: Number of standard deviations, 0 or more.
        unbiased: Divide by one less than the number of values in the standard deviation.

    Returns:
        ``(channels,)``; all False where fewer than 2 values are known or the known ones are equal.
    """
    known = np.isfinite(values)
    found = np.zeros(len(values), dtype=bool)
    if not is_constant(values[known]):
        found[known] = values[known] > values[known].mean() + u * values[known].std(ddof=int(unbiased))
    return found


def is_constant(sigma: Floats) -> bool:
    """Fewer than 2 channels, or scores equal up to rounding: no channel stands out."""
    return len(sigma) < 2 or bool(np.ptp(sigma) <= 1e-12 * np.abs(sigma).max())
