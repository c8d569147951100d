"""Spectral norms of many small kernels at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clp_plugin.types import Floats

_CHUNK_ELEMENTS = 1 << 17  # elements worked on at once, so that a half-precision model needs no second copy
_BATCH = 512  # Gram matrices turned into norms at once
_SQUARINGS = 8
_CONVERGED = 0.02  # see _largest_eigenvalues
_TINY = 1e-15  # norms below: their squares lose digits in float32


def spectral_norms(kernels: Sequence[Tensor]) -> list[Tensor]:
    """Largest singular value of each channel's kernel, for all layers in one pass over the weights.

    A kernel of ``C`` inputs and ``p`` positions is a ``C x p`` matrix; its squared singular values are the eigenvalues of
    the smaller of its two Gram matrices, at most ``p x p``. The cost is linear in the number of weights, and the extra
    memory that of one piece of a layer and of a batch of Gram matrices.

    Args:
        kernels: One tensor per layer, ``(K, C, *positions)`` (or ``(K, C)``), any floating dtype.

    Returns:
        One ``(K,)`` float64 tensor per layer on the CPU; NaN where a kernel holds NaN or Inf.

    Source:
        CLP 4.1. Agrees with a float64 SVD to 1e-5 relative.
    """
    found: list[Floats] = [np.empty(len(kernel)) for kernel in kernels]
    grams: dict[int, list[tuple[Floats, NDArray[Any]]]] = {}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        for piece, norms in _pieces(kernels, found):
            if 1 in piece.shape[1:]:
                vectors = piece.reshape(len(piece), -1)
                np.sqrt(np.einsum("kc,kc->k", vectors, vectors), out=norms)
            else:
                gram = _gram(piece)
                waiting = grams.setdefault(gram.shape[-1], [])
                waiting.append((norms, gram))
                if sum(len(g) for _, g in waiting) >= _BATCH:
                    _finish(waiting)
        for waiting in grams.values():
            _finish(waiting)
    for piece, norms in _pieces(kernels, found):
        _recompute_doubtful(piece, norms)
    return [torch.from_numpy(values) for values in found]


def _pieces(kernels: Sequence[Tensor], found: list[Floats]) -> Iterator[tuple[NDArray[Any], Floats]]:
    """Parts of layers as ``(K, C, p)`` matrices on the CPU, each with the part of the result that it fills."""
    for kernel, norms in zip(kernels, found, strict=True):
        matrices = kernel.detach().flatten(2) if kernel.ndim > 2 else kernel.detach().unsqueeze(-1)
        step = max(1, _CHUNK_ELEMENTS // max(1, matrices[:1].numel()))
        for start in range(0, len(norms), step):
            part = matrices[start : start + step].cpu()
            full = part if part.dtype in (torch.float32, torch.float64) else part.float()
            yield full.numpy(), norms[start : start + step]


def _gram(matrices: NDArray[Any]) -> NDArray[Any]:
    """The smaller Gram matrix of each ``(K, C, p)`` matrix, ``(K, n, n)``."""
    narrow = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.transpose(0, 2, 1)
    # All but the first column: for a matrix times its own transpose numpy calls a routine that is slower at this size.
    gram = np.empty((len(narrow), narrow.shape[2], narrow.shape[2]), dtype=narrow.dtype)
    np.matmul(narrow.transpose(0, 2, 1), narrow[:, :, 1:], out=gram[:, :, 1:])
    gram[:, 1:, 0] = gram[:, 0, 1:]
    gram[:, 0, 0] = np.einsum("kc,kc->k", narrow[:, :, 0], narrow[:, :, 0])
    return gram


def _finish(waiting: list[tuple[Floats, NDArray[Any]]]) -> None:
    """Turn the waiting Gram matrices, all of one size, into norms."""
    if not waiting:
        return
    largest = np.sqrt(_largest_eigenvalues(np.concatenate([gram for _, gram in waiting])))
    start = 0
    for norms, gram in waiting:
        norms[:] = largest[start : start + len(gram)]
        start += len(gram)
    waiting.clear()


def _recompute_doubtful(piece: NDArray[Any], norms: Floats) -> None:
    """Once more, in float64, what overflowed or vanished when squared; NaN stays where a kernel is not finite."""
    doubtful = np.flatnonzero(~(norms > _TINY) | ~np.isfinite(norms))
    if len(doubtful):
        norms[doubtful] = _by_svd(piece[doubtful])


def _largest_eigenvalues(grams: NDArray[Any]) -> Floats:
    """Largest eigenvalue of each positive semidefinite matrix, ``(K, n, n)`` to ``(K,)``; NaN in, NaN out.

    Repeated squaring gives B = A^256, whose Rayleigh quotient falls short of the top eigenvalue by the weight of the
    others, w = (l2 / l1)^512, times their distance, at most -w ln(w) / 512. With trace 1, 1 / |B|^2 - 1 = 2 sqrt(w) says
    how much weight is left; 0.02 bounds the error of the singular value by 1e-6. The few matrices with a closer pair of
    eigenvalues go to LAPACK, which takes several times as long.
    """
    trace = np.einsum("kii->k", grams)
    unit = grams / trace[:, None, None]
    power = unit
    for _ in range(_SQUARINGS):
        power = power @ power
        power /= np.einsum("kii->k", power)[:, None, None]
    weight_left = 1 / np.einsum("kij,kij->k", power, power) - 1
    power = power @ power
    largest: Floats = np.einsum("kij,kij->k", unit, power) / np.einsum("kii->k", power) * trace
    close = np.flatnonzero((weight_left > _CONVERGED) & np.isfinite(trace))
    if len(close):
        largest[close] = torch.linalg.eigvalsh(torch.from_numpy(grams[close]))[:, -1].numpy()
    return largest


def _by_svd(matrices: NDArray[Any]) -> Floats:
    """The slow way in float64, for kernels whose squares overflow or vanish; NaN where a kernel is not finite."""
    exact = torch.from_numpy(matrices).double()
    finite = exact.flatten(1).isfinite().all(dim=1)
    found = torch.full((len(exact),), torch.nan, dtype=torch.float64)
    found[finite] = torch.linalg.svdvals(exact[finite])[:, 0]
    return found.numpy()
