"""Kernels as they are really used, and norm gains by their formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_nets import CASES, StandardizedConv, randomize
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

from clp_plugin.errors import PairingError
from clp_plugin.scoring.kernels import batchnorm_gain, batchnorm_gamma, kernel

CONVS = {
    "plain": lambda: nn.Conv2d(4, 6, (3, 2), stride=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding_mode="reflect", padding=1),
    "1d": lambda: nn.Conv1d(4, 6, 3),
    "3d": lambda: nn.Conv3d(4, 6, (1, 2, 3)),
    "standardized": lambda: StandardizedConv(4, 6, 3),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)),
    "old weight_norm": lambda: torch.nn.utils.weight_norm(nn.Conv2d(4, 6, 3)),
}
TRANSPOSED = {
    "plain": lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2),
    "grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "1d": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "3d": lambda: nn.ConvTranspose3d(4, 6, 2),
}


@pytest.mark.parametrize("make", CONVS.values(), ids=CONVS.keys())
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_kernel_is_what_an_impulse_shows(make: Callable[[], nn.Module]) -> None:
    """Input 1 at one place: the output at the centre is the kernel's entry there."""
    conv = make().eval().double()
    found = kernel(conv)
    per_group = conv.in_channels // conv.groups
    assert found.shape == (conv.out_channels, per_group, *conv.kernel_size)
    with torch.no_grad():
        image = torch.zeros(1, conv.in_channels, *[k + 4 for k in conv.kernel_size], dtype=torch.float64)
        origin = tuple(2 * s - p for s, p in zip(conv.stride, conv.padding, strict=True))  # where window 2 starts
        silence = conv(image)
        for channel in range(conv.in_channels):
            for place in torch.cartesian_prod(*map(torch.arange, conv.kernel_size)).view(-1, len(conv.kernel_size)):
                image.zero_()
                at = tuple(o + int(p) for o, p in zip(origin, place, strict=True))
                if any(a >= n for a, n in zip(at, image.shape[2:], strict=True)):
                    continue
                image[(0, channel, *at)] = 1
                response = (conv(image) - silence)[(0, slice(None), *[2] * len(origin))]
                group = channel // per_group
                rows = torch.arange(conv.out_channels) // (conv.out_channels // conv.groups) == group
                expected = torch.where(rows, found[(slice(None), channel % per_group, *place.tolist())], 0)
                torch.testing.assert_close(response, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_transposed_kernel_row_is_what_one_output_channel_answers(make: Callable[[], nn.Module]) -> None:
    """A single pixel comes out as the whole kernel of every output channel."""
    conv = make().double()
    found = kernel(conv)
    per_group = conv.in_channels // conv.groups
    with torch.no_grad():
        for channel in range(conv.in_channels):
            image = torch.zeros(1, conv.in_channels, *[1] * len(conv.kernel_size), dtype=torch.float64)
            silence = conv(image)
            image[0, channel] = 1
            response = (conv(image) - silence)[0]
            for k in range(conv.out_channels):
                same_group = k // (conv.out_channels // conv.groups) == channel // per_group
                expected = found[k, channel % per_group] if same_group else torch.zeros_like(response[k])
                torch.testing.assert_close(response[k], expected)


def test_plain_kernel_is_a_view_and_no_copy() -> None:
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(3, 4)
    assert kernel(conv).data_ptr() == conv.weight.data_ptr()
    assert kernel(linear).data_ptr() == linear.weight.data_ptr()
    assert not kernel(conv).requires_grad


@pytest.mark.parametrize("name", ["parametrized", "weight_standardized"])
def test_reading_a_kernel_changes_nothing_even_in_training_mode(name: str) -> None:
    """spectral_norm takes a step of its power iteration on every use in training mode."""
    model = CASES[name].build().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for conv in (model.conv1, model.conv2):
        kernel(conv)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.conv2.training


class HalvedLinear(nn.Linear):
    """Uses half of the weight that it stores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight / 2, self.bias)


@pytest.mark.parametrize("bias", [False, True])
def test_kernel_of_a_linear_map_is_what_it_uses(bias: bool) -> None:
    linear = HalvedLinear(4, 3, bias=bias)
    assert torch.equal(kernel(linear), linear.weight / 2)


def test_convolution_that_never_convolves_is_refused() -> None:
    class Pretender(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    with pytest.raises(PairingError, match="Pretender"):
        kernel(Pretender(3, 3, 1))


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


def doubled(norm: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(norm, "weight", Double())
    return norm


class Scaled(nn.BatchNorm2d):
    """Multiplies its weight in forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight * torch.linspace(-3, 2, len(self.weight), dtype=x.dtype)
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, False, 0.0, self.eps)


class ScaledBehind(nn.BatchNorm2d):
    """Multiplies what it puts out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0.25


class Activated(Scaled):
    """Ends in an activation that saturates."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(super().forward(x))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.BatchNorm2d(5),
    "weight scaled": lambda: Scaled(5),
    "output scaled": lambda: ScaledBehind(5),
    "frozen": lambda: FrozenBatchNorm2d(5),
    "without affine parameters": lambda: nn.BatchNorm2d(5, affine=False),
    "pruned": lambda: prune.l1_unstructured(nn.BatchNorm2d(5), "weight", 2),
    "parametrized": lambda: doubled(nn.BatchNorm2d(5)),
}


@pytest.mark.parametrize("name", NORMS)
def test_gain_is_the_slope_that_the_module_shows(name: str) -> None:
    norm = randomize(NORMS[name]()).eval()
    zeros, ones = torch.zeros(1, 5, 1, 1), torch.ones(1, 5, 1, 1)
    with torch.no_grad():
        slope = (norm(ones) - norm(zeros)).flatten().abs().double()
    torch.testing.assert_close(batchnorm_gain(norm), slope, rtol=1e-5, atol=1e-6)
    one_over_std = batchnorm_gain(norm, with_gamma=False)
    torch.testing.assert_close(batchnorm_gamma(norm) * one_over_std, batchnorm_gain(norm), rtol=1e-12, atol=1e-12)


def test_gain_in_front_of_an_activation_is_that_of_the_batch_norm() -> None:
    linear, activated = randomize(Scaled(5)).eval(), randomize(Activated(5)).eval()
    torch.testing.assert_close(batchnorm_gain(activated), batchnorm_gain(linear))
    assert not batchnorm_gain(activated).requires_grad


def test_batchnorm_that_is_no_linear_map_is_refused() -> None:
    class Squares(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    with pytest.raises(PairingError, match="Squares is a BatchNorm by its class but no fixed linear map"):
        batchnorm_gain(Squares(2))


def test_norm_gain_is_gamma_over_the_root_of_variance_plus_eps() -> None:
    norm = nn.BatchNorm2d(3, eps=0.5)
    norm.weight.data = torch.tensor([3.0, -3.0, 0.0])
    norm.running_var = torch.tensor([8.5, 8.5, 0.0])
    assert batchnorm_gain(norm).tolist() == pytest.approx([1, 1, 0])
    assert batchnorm_gain(norm, with_gamma=False).tolist() == pytest.approx([1 / 3, 1 / 3, 2**0.5])
    assert batchnorm_gain(norm, with_eps=False).tolist()[:2] == pytest.approx([3 / 8.5**0.5] * 2)
    plain = nn.BatchNorm2d(2, affine=False, eps=0.0)
    plain.running_var = torch.tensor([4.0, 16.0])
    assert batchnorm_gain(plain).tolist() == pytest.approx([0.5, 0.25])
    assert batchnorm_gain(plain).dtype == torch.float64
