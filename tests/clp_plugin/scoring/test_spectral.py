"""Spectral norms agree with a float64 SVD, channel by channel, whatever the dtype and the size of the numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clp_plugin.scoring.spectral import spectral_norms

SHAPES = [(6, 16, 3, 3), (5, 2, 3, 3), (4, 1, 3, 3), (7, 9, 1, 1), (3, 8), (2, 4, 5), (2, 3, 2, 2, 2), (3, 40, 7, 7)]


def slow(kernel: torch.Tensor) -> np.ndarray:
    """One SVD a channel, in float64, of numbers scaled to 1 so that nothing can overflow."""
    out = []
    for channel in kernel:
        matrix = channel.double().numpy().reshape(channel.shape[0], -1)
        unit = np.abs(matrix).max()
        out.append(unit * np.linalg.svd(matrix / unit, compute_uv=False)[0] if unit > 0 else 0.0)
    return np.array(out)


def kernels(scale: float, dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-20, 1e-15, 1e-8, 1.0, 1e8, 1e18, 1e20])
def test_agrees_with_an_svd_at_every_magnitude(dtype: torch.dtype, scale: float) -> None:
    given = kernels(scale, dtype)
    for kernel, found in zip(given, spectral_norms(given), strict=True):
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), slow(kernel), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e3])
def test_agrees_with_an_svd_in_half_precision(scale: float) -> None:
    given = kernels(scale, torch.float16)
    for kernel, found in zip(given, spectral_norms(given), strict=True):
        np.testing.assert_allclose(found.numpy(), slow(kernel), rtol=1e-5)


def test_channels_of_very_different_size_share_a_layer() -> None:
    kernel = kernels(1.0, torch.float32)[0] * torch.tensor([1e-25, 1e-10, 1.0, 1e10, 1e25, 0.0]).view(-1, 1, 1, 1)
    found = spectral_norms([kernel])[0].numpy()
    np.testing.assert_allclose(found, slow(kernel), rtol=1e-5)
    assert found[-1] == 0


def test_nearly_equal_singular_values_are_no_trouble() -> None:
    """Power iteration would stall here."""
    q = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    kernel = (q * torch.linspace(1, 1 - 1e-7, 9, dtype=torch.float64)).float().view(1, 9, 3, 3).repeat(3, 1, 1, 1)
    np.testing.assert_allclose(spectral_norms([kernel])[0].numpy(), slow(kernel), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_broken_channel_is_nan_and_the_others_are_right(shape: tuple[int, ...], bad: float) -> None:
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kernel[1].view(-1)[-1] = bad
    found = spectral_norms([kernel])[0].numpy()
    rest = [k for k in range(shape[0]) if k != 1]
    assert not np.isfinite(found[1])
    np.testing.assert_allclose(found[rest], slow(kernel[rest]), rtol=1e-5)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_many_channels_on_several_threads() -> None:
    given = [torch.randn(700, 12, 3, 3, generator=torch.Generator().manual_seed(0))]
    np.testing.assert_allclose(spectral_norms(given)[0].numpy(), slow(given[0]), rtol=1e-5)


def test_input_is_not_changed_and_nothing_gives_nothing() -> None:
    given = kernels(1e-20, torch.float32)
    before = [k.clone() for k in given]
    spectral_norms(given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert spectral_norms([]) == []


def test_non_contiguous_kernels_are_read_right() -> None:
    kernel = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    turned = kernel.transpose(0, 1)
    np.testing.assert_allclose(spectral_norms([kernel])[0].numpy(), slow(kernel), rtol=1e-5)
    np.testing.assert_allclose(spectral_norms([turned])[0].numpy(), slow(turned), rtol=1e-5)
