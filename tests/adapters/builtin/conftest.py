"""A record that the tests of the built-in bench share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_attack import SMALL_BADNETS, run_attack


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_attack(SMALL_BADNETS, tmp_path_factory.mktemp("runs") / "x")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the record that a test may damage."""
    copy = tmp_path / "x"
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
