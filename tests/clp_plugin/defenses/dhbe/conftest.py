"""Fixtures of the tests of DHBE."""

from __future__ import annotations

import pytest
import torch
from tiny_dhbe import compute_in


@pytest.fixture(autouse=True)
def precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine."""
    compute_in(torch.float32, monkeypatch)
