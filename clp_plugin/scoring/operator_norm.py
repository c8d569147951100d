"""The exact spectral norm of one output channel of a convolution, on its real input size, stride and padding.

Channel k of a convolution is a linear map A_k from ``(C, H, W)`` to ``(H', W')``. The paper calls its norm too expensive
because the doubly block-Toeplitz matrix is huge. Two facts make it cheap: mixing the input channels by an orthogonal
matrix leaves the norm alone, so a kernel of any C is equivalent to one of at most ``p`` (positions) channels; and the
largest singular value needs only products with A_k and its adjoint, for all channels of a layer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_STEPS = 200
_TOLERANCE = 1e-7  # of the squared norm
_PATIENCE = 8  # steps over which the largest Ritz value must stand still
_SHARPNESS = 16  # of the start's spectrum
_CHUNK_ELEMENTS = 1 << 24
_CONVOLUTIONS: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}


def operator_norms(kernel: Tensor, module: nn.Module, input_size: tuple[int, ...]) -> Tensor:
    """Exact spectral norm of every output channel.

    Args:
        kernel: ``(K, C_in / groups, *kernel_size)`` as the forward convolution reads it (scaled or not).
        module: The convolution, for its stride, padding (any mode), dilation and, if transposed, output padding.
        input_size: Spatial size of its input.

    Returns:
        ``(K,)`` float64 on the CPU.

    Source:
        CLP 4.1 (the DBT matrix that the paper replaces by the reshaped kernel); Lanczos with full reorthogonalization on
        A_k A_k^T, stopped when the largest Ritz value grows by less than 1e-7 relative in eight steps.
    """
    exact = kernel.double().cpu()
    if exact[0, 0].numel() == 1:
        pointwise: Tensor = torch.linalg.vector_norm(exact.flatten(1), dim=1)
        return pointwise
    largest = exact.flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    compact = _compressed(exact / largest.view(-1, *[1] * (exact.ndim - 1)))
    per_channel = compact.shape[1] * int(torch.tensor(input_size).prod())
    step = max(1, _CHUNK_ELEMENTS // per_channel)
    return largest * torch.cat([_largest_singular_values(part, module, input_size) for part in compact.split(step)])


def _compressed(kernel: Tensor) -> Tensor:
    """An equivalent kernel with at most ``p`` input channels: U drops out of ``C x p = U S V^T``."""
    matrices = kernel.flatten(2)
    if matrices.shape[1] <= matrices.shape[2]:
        return kernel
    triangular: Tensor = torch.linalg.qr(matrices, mode="r").R
    return triangular.reshape(*triangular.shape[:2], *kernel.shape[2:])


def _largest_singular_values(kernel: Tensor, module: nn.Module, input_size: tuple[int, ...]) -> Tensor:
    channels, inputs = kernel.shape[:2]
    forward = _channel_map(kernel, module)
    zero = torch.zeros((1, channels * inputs, *input_size), dtype=kernel.dtype)
    output, adjoint = torch.func.vjp(forward, zero)[:2]
    start = _likely_maximizer(kernel, module, tuple(output.shape[2:]))

    def gram(flat: Tensor) -> Tensor:
        return forward(adjoint(flat.view_as(output))[0]).view(channels, -1)

    return _lanczos(gram, start.view(channels, -1)).clamp(min=0).sqrt()


def _channel_map(kernel: Tensor, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """All channels side by side as one grouped convolution from ``(1, K * C, ...)`` to ``(1, K, ...)``."""
    conv: Any = module
    channels = kernel.shape[0]
    plain, transposed = _CONVOLUTIONS[kernel.ndim - 2]
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        weight = kernel.flatten(0, 1).unsqueeze(1)
        return lambda x: transposed(
            x, weight, None, conv.stride, conv.padding, conv.output_padding, channels, conv.dilation
        )
    if conv.padding_mode == "zeros":
        return lambda x: plain(x, kernel, None, conv.stride, conv.padding, conv.dilation, channels)
    sides = conv._reversed_padding_repeated_twice
    return lambda x: plain(
        F.pad(x, sides, mode=conv.padding_mode), kernel, None, conv.stride, 0, conv.dilation, channels
    )


def _likely_maximizer(kernel: Tensor, module: nn.Module, output_size: tuple[int, ...]) -> Tensor:
    """A start for Lanczos, ``(K, *output_size)``: noise of the frequencies that the kernel amplifies most, under an arch.

    Far from the borders the operator A A^T is a convolution, whose eigenvectors are waves; a border makes them fade out.
    """
    conv: Any = module
    strides = (1,) * len(output_size) if conv.transposed else conv.stride
    sizes = [size * stride for size, stride in zip(output_size, strides, strict=True)]
    gain = torch.fft.fftn(kernel, s=sizes, dim=tuple(range(2, kernel.ndim))).abs().square().sum(1)
    for dim, (size, stride) in enumerate(zip(output_size, strides, strict=True), start=1):
        gain = gain.index_select(dim, torch.arange(size * stride) * conv.dilation[dim - 1] % (size * stride))
        gain = gain.unflatten(dim, (stride, size)).mean(dim)  # a stride folds frequencies onto each other
    gain = (gain / gain.flatten(1).amax(1).clamp(min=1e-30).view(-1, *[1] * len(output_size))) ** _SHARPNESS
    noise = torch.randn(gain.shape, generator=torch.Generator().manual_seed(0))
    dims = tuple(range(1, gain.ndim))
    waves = torch.fft.ifftn(torch.fft.fftn(noise, dim=dims) * gain, dim=dims).real
    for dim, size in enumerate(output_size):
        arch = torch.sin(torch.pi * (torch.arange(size) + 1) / (size + 1))
        waves = waves * arch.view([-1 if d == dim else 1 for d in range(len(output_size))])
    size_of_waves = waves.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, *[1] * len(output_size))
    start: Tensor = (waves / size_of_waves + 1e-2 * noise).to(kernel.dtype)
    return start


def _lanczos(gram: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Largest eigenvalue of each of K symmetric maps on vectors of length n, ``(K, n)`` in, ``(K,)`` out."""
    tiny = torch.finfo(start.dtype).tiny
    basis = [start / start.norm(dim=1, keepdim=True)]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    history: list[Tensor] = []
    for step in range(min(_STEPS, start.shape[1])):
        image = gram(basis[-1])
        alphas.append((image * basis[-1]).sum(1))
        vectors = torch.stack(basis, dim=1)
        for _ in range(2):
            image = image - torch.einsum("kmn,km->kn", vectors, torch.einsum("kmn,kn->km", vectors, image))
        history.append(_top_ritz_value(alphas, betas))
        largest = history[-1]
        if step > _PATIENCE and bool((largest - history[-_PATIENCE] <= _TOLERANCE * largest).all()):
            break
        beta = image.norm(dim=1)
        betas.append(beta)
        exhausted = beta <= 1e-10 * largest
        basis.append(torch.where(exhausted[:, None], 0.0, image / beta.clamp(min=tiny)[:, None]))
    return history[-1]


def _top_ritz_value(alphas: list[Tensor], betas: list[Tensor]) -> Tensor:
    tridiagonal = torch.diag_embed(torch.stack(alphas, dim=1))
    if betas:
        off = torch.stack(betas, dim=1)
        tridiagonal = tridiagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    largest: Tensor = torch.linalg.eigvalsh(tridiagonal)[:, -1]
    return largest
