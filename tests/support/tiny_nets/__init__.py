"""Tiny networks whose linear layers were written down by hand, one per thing that real models do."""

from __future__ import annotations

from . import paths, layers, norms, heads  # isort: skip  # each registers its cases, in this order
from .layers import StandardizedConv
from .parts import CASES, Case, Wired, classify, conv, randomize

__all__ = [
    "CASES",
    "Case",
    "StandardizedConv",
    "Wired",
    "classify",
    "conv",
    "heads",
    "layers",
    "norms",
    "paths",
    "randomize",
]
