"""A few hundred mutated files of every kind: read or refused, nothing else. ``benchmarks/fuzz.py`` does any number."""

from __future__ import annotations

from pathlib import Path

import pytest

from clp_plugin.imports import import_file

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"

pytestmark = pytest.mark.skipif(not FUZZ.is_file(), reason="needs the checkout")


def test_what_is_mutated_is_sound_before(tmp_path: Path) -> None:
    fuzz = import_file(FUZZ)
    for name, kind in fuzz.kinds().items():
        assert fuzz.outcome_of(kind, kind.write(kind.content), tmp_path) == "read", name


def test_mutated_files_are_read_or_refused() -> None:
    pytest.importorskip("resource", reason="needs the limits of Unix")
    fuzz = import_file(FUZZ)
    found = fuzz.fuzz(list(fuzz.kinds()), 400, seed=1)
    wrong = [
        f"{name}: {what}" for name, outcomes in found.items() for what in outcomes if what not in ("read", "refused")
    ]
    assert not wrong
    assert sum(outcomes["refused"] for outcomes in found.values()) > 100


def test_a_worker_that_fails_hangs_or_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = import_file(FUZZ)

    def broken(path: Path) -> object:
        raise KeyError(path.name)

    kind = fuzz.Kind("x", lambda _: b"content", None, broken)
    monkeypatch.setattr(fuzz, "kinds", lambda: {"broken": kind})
    assert "KeyError" in next(iter(fuzz.fuzz(["broken"], 1, seed=0)["broken"]))
    dying = fuzz.Kind("x", lambda _: b"content", None, lambda path: fuzz.os._exit(3))
    monkeypatch.setattr(fuzz, "kinds", lambda: {"broken": dying})
    assert fuzz.fuzz(["broken"], 1, seed=0)["broken"] == {"killed the process": 1}
