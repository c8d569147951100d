"""Fixtures shared by the tests of the core: tiny networks with known answers, and random statistics for their norms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors on several threads cost more in waiting than in arithmetic: up to 40 times on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
