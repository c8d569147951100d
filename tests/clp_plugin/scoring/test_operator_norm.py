"""The exact norm equals that of the explicit (doubly block-Toeplitz) matrix, built by basis vectors."""

from __future__ import annotations

import pytest
import torch
from tiny_nets import Wired, classify, conv
from torch import nn

from clp_plugin.fusion.layers import fuse
from clp_plugin.scoring.kernels import kernel
from clp_plugin.scoring.lipschitz import score
from clp_plugin.scoring.operator_norm import operator_norms

SAME = {"padding": 1}
CASES = {
    "valid": (nn.Conv2d, {}, (6, 5)),
    "zero padding": (nn.Conv2d, SAME, (6, 5)),
    "wide padding": (nn.Conv2d, {"padding": (3, 1)}, (5, 4)),
    "stride": (nn.Conv2d, {"stride": 2, **SAME}, (7, 6)),
    "stride past the kernel": (nn.Conv2d, {"stride": 4}, (9, 9)),
    "dilation": (nn.Conv2d, {"dilation": 2, "padding": 2}, (7, 7)),
    "groups": (nn.Conv2d, {"groups": 2, **SAME}, (5, 5)),
    "padding same": (nn.Conv2d, {"padding": "same", "dilation": (1, 2)}, (5, 6)),
    "padding valid": (nn.Conv2d, {"padding": "valid"}, (5, 6)),
    "circular": (nn.Conv2d, {"padding_mode": "circular", **SAME}, (5, 6)),
    "reflect": (nn.Conv2d, {"padding_mode": "reflect", **SAME}, (5, 6)),
    "replicate": (nn.Conv2d, {"padding_mode": "replicate", "stride": 2, **SAME}, (6, 6)),
    "transposed": (nn.ConvTranspose2d, {"stride": 2, "padding": 1, "output_padding": 1}, (4, 3)),
    "transposed grouped": (nn.ConvTranspose2d, {"groups": 2, "dilation": 2}, (3, 4)),
    "1-D": (nn.Conv1d, {"stride": 2, "padding": 2}, (11,)),
    "1-D transposed": (nn.ConvTranspose1d, {"stride": 3}, (5,)),
    "3-D": (nn.Conv3d, SAME, (3, 4, 3)),
    "one output pixel": (nn.Conv2d, {}, (3, 3)),
}


def explicit_norms(module: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """SVD of the matrix whose columns are the module's answers to the basis vectors; per output channel."""
    inputs = module.in_channels
    basis = torch.eye(inputs * int(torch.tensor(size).prod()), dtype=torch.float64).view(-1, inputs, *size)
    with torch.no_grad():
        columns = module(basis) - module(torch.zeros_like(basis[:1]))
    return torch.stack([torch.linalg.svdvals(columns[:, k].flatten(1))[0] for k in range(columns.shape[1])])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inputs", [2, 12])
def test_norm_equals_that_of_the_explicit_matrix(name: str, inputs: int) -> None:
    kind, options, size = CASES[name]
    module = kind(inputs, 4, 3, **options).double()
    g = torch.Generator().manual_seed(inputs)
    module.weight.data = torch.randn(module.weight.shape, generator=g, dtype=torch.float64)
    found = operator_norms(kernel(module), module, size)
    torch.testing.assert_close(found, explicit_norms(module, size), rtol=1e-5, atol=0)


def test_even_and_pointwise_kernels() -> None:
    for shape in [(1, 1), (2, 4), (1, 3)]:
        module = nn.Conv2d(3, 2, shape).double()
        torch.testing.assert_close(
            operator_norms(kernel(module), module, (5, 6)), explicit_norms(module, (5, 6)), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_extreme_numbers(scale: float) -> None:
    module = nn.Conv2d(3, 2, 3, padding=1, bias=False).double()
    module.weight.data *= scale
    found = operator_norms(kernel(module), module, (5, 5))
    torch.testing.assert_close(found, explicit_norms(module, (5, 5)), rtol=1e-5, atol=0)


def test_same_numbers_twice_and_independent_of_the_global_seed() -> None:
    module = nn.Conv2d(3, 2, 3)
    first = operator_norms(kernel(module), module, (6, 6))
    torch.rand(3)
    assert torch.equal(first, operator_norms(kernel(module), module, (6, 6)))


def test_score_uses_each_layers_real_input_size_and_norm() -> None:
    net = Wired(
        lambda n, x: classify(n, n.bn2(n.conv2(n.bn1(n.conv1(x)).relu()))),
        conv1=conv(3, 4, stride=2), bn1=nn.BatchNorm2d(4), conv2=conv(4, 3, dilation=2), bn2=nn.BatchNorm2d(3),
        fc=nn.Linear(3, 2),
    ).eval()  # fmt: skip
    net.bn2.running_var.fill_(0.25)
    net.bn2.weight.data = torch.tensor([1.0, -2.0, 3.0])
    found = score(fuse(net, (3, 10, 8)), norm="exact")
    gain = torch.tensor([1.0, 2.0, 3.0]).double() / (0.25 + 1e-5) ** 0.5
    expected = explicit_norms(net.conv2.double(), (5, 4)) * gain
    torch.testing.assert_close(torch.from_numpy(found.sigma["bn2"]), expected, rtol=1e-5, atol=0)
    assert found.norm == "exact"
