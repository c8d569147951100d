"""Memory of large tensors, kept for the next one."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
_NO_TENSOR_IS_LARGER = 1 << 30  # bytes
_LARGEST_INT = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Tell glibc to reuse the memory of freed tensors in this process instead of giving it back to the system.

    Otherwise every large activation is mapped anew and filled with zeros page by page, which took a third of the processor
    time of a sweep (docs/benchmarks.md). What is computed stays the same bit by bit; memory stays at its peak until the
    process ends.
    Without effect where the C library is not glibc. For programs, not for libraries: it concerns the whole process.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _NO_TENSOR_IS_LARGER)
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
