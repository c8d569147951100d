"""The record that the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import ATTACK, METRICS, bench


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of a network of ten layers; tests may add results to it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    found = bench("attack", *ATTACK, "--out", out, "--device", "cpu", "--json").json
    assert list(found) == ["record", "seconds", *METRICS]
    assert found["record"] == str(out)
    assert found["n_clean"] == 60
    return out
