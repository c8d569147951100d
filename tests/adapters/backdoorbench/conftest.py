"""Fixtures of the tests of BackdoorBench's adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fake_checkout import fake_attack_record, fake_checkout, without_bridges

from clp_plugin.config import CONFIG_VARIABLE


@pytest.fixture
def no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of whoever runs the tests must not supply what a record lacks."""
    monkeypatch.delenv("BACKDOORBENCH_ROOT", raising=False)


@pytest.fixture
def temporary(no_checkout: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; not below ``tmp_path``, which may have ``record`` in it."""
    without_bridges(monkeypatch)
    place = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv(CONFIG_VARIABLE, str(place.with_name("no-settings.yaml")))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout, of stand-ins."""
    return fake_checkout(tmp_path / "bench")


@pytest.fixture
def record(root: Path) -> Path:
    """A record in it."""
    return fake_attack_record(root / "record" / "eins")
