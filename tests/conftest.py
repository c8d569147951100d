"""Fixtures shared by the tests of the core: tiny networks with known answers, and random statistics for their norms."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# Tiny tensors on several threads cost more in waiting than in arithmetic, and another number sums in another order.
# Read by torch when it is imported, here and in every process that a test starts; what the caller asks for wins.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs, and all that they start, are deaf to Ctrl-C, which some tests send to processes of their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from torch import nn

# pytest puts this folder on the path, where `import adapters` would find the tests of that name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE / "support"), *(place for place in sys.path if place != str(HERE))]

from tiny_nets import CASES, Case, randomize  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture
def float32_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision, which some processors compute fast, would hide small mistakes."""
    monkeypatch.setattr("clp_plugin.networks.precision._cpu_computes_bf16", lambda _: False)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """``build(name)``: a tiny network of ``tiny_nets`` in eval mode, with seeded weights and random statistics."""

    def make(name: str, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return randomize(CASES[name].build(), seed).eval()

    return make


@pytest.fixture
def net(case: Case, build: Callable[..., nn.Module]) -> nn.Module:
    return build(case.name)
