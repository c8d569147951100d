"""Independent random streams from one user-visible seed; the global generators are never touched."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The uses of randomness. The numbers are part of what makes a stored record reproducible: append only."""

    SUBSET = 1
    SPLIT = 2
    POISON = 3
    TRIGGER = 4
    WEIGHTS = 5
    TRAINING = 6
    SAMPLE = 7
    PREPARATION = 8


def numpy_generator(seed: int, stream: Stream, *more: int) -> np.random.Generator:
    """A numpy generator of its own for ``(seed, stream, *more)``; all numbers non-negative."""
    return np.random.default_rng([seed, int(stream), *more])


def torch_seed(seed: int, stream: Stream, *more: int) -> int:
    """A seed in [0, 2**63) for a ``torch.Generator``, independent between streams."""
    words = np.random.SeedSequence([seed, int(stream), *more]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def torch_generator(seed: int, stream: Stream, *more: int) -> torch.Generator:
    """A CPU torch generator of its own for ``(seed, stream, *more)``."""
    return torch.Generator().manual_seed(torch_seed(seed, stream, *more))
