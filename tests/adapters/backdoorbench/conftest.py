"""Fixtures of the tests of BackdoorBench's adapter."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of whoever runs the tests must not supply what a record lacks."""
    monkeypatch.delenv("BACKDOORBENCH_ROOT", raising=False)
