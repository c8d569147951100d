"""Fixtures shared by the tests of the core: tiny networks with known answers, and random statistics for their norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_nets import CASES, Case
from torch import nn


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES.values(), ids=CASES.keys())


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine parameters of both signs in every norm: fresh ones hide a wrong pairing."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            k = module.running_var.shape
            module.running_var.copy_(torch.rand(k, generator=g) + 0.5)
            module.running_mean.copy_(torch.randn(k, generator=g) * 0.1)
            if module.weight is not None:
                sign = torch.randint(0, 2, k, generator=g) * 2.0 - 1
                module.weight.data.copy_(sign * (torch.rand(k, generator=g) + 0.5))
                module.bias.data.copy_(torch.randn(k, generator=g) * 0.2 + 0.3)
    return model


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
