"""Tiny networks whose linear layers were written down by hand, one per thing that real models do."""

from __future__ import annotations

import tiny_heads  # noqa: F401  # each of the four registers its cases
import tiny_norms  # noqa: F401
import tiny_paths  # noqa: F401
from tiny_layers import StandardizedConv
from tiny_parts import CASES, Case, Wired, classify, conv, randomize

__all__ = ["CASES", "Case", "StandardizedConv", "Wired", "classify", "conv", "randomize"]
