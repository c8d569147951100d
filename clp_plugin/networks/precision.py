"""The number format to train in on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from clp_plugin.types import Precision

_CPUINFO = Path("/proc/cpuinfo")
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """``torch.float32`` or ``torch.bfloat16``; ``"auto"`` is bfloat16 where the device has instructions for it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_computes_bf16(_CPUINFO) else torch.float32


def memory_format(dtype: torch.dtype, device: torch.device) -> torch.memory_format:
    """The faster layout: on CPUs bfloat16 is slow without channels_last, and float32 slow with it."""
    last = device.type == "cuda" or dtype == torch.bfloat16
    return torch.channels_last if last else torch.contiguous_format


def _cpu_computes_bf16(cpuinfo: Path) -> bool:
    # Emulated bfloat16 is several times slower than float32, and torch has no public function to ask. Where there is no
    # such file, as on macOS and Windows, float32 is the safe answer.
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(_BF16_FLAGS & set(flags.partition(":")[2].split()))
