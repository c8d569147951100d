"""The device of a model, and random numbers that start from a seed there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from clp_plugin.errors import ConfigError


def pick_device(name: str) -> str:
    """A device that works here; ``auto`` is CUDA where there is one.

    Args:
        name: Name of a device, such as ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``.

    Raises:
        ConfigError: If the device does not exist here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).cpu()  # some devices, such as meta, take tensors and hold none
    except Exception as error:  # each kind of device that is not there fails in its own way
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device {name!r} cannot be used here: {told}; try --device cpu") from error
    return name


def described(device: str) -> str:
    """The device with the name of its card, such as ``"cuda (NVIDIA H100 80GB HBM3)"``; ``"cpu"`` stays as it is."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if torch.device(device).type == "cuda" else device


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def moved(model: nn.Module, device: str) -> Iterator[None]:
    """The model lies on the device inside, and where it was afterwards."""
    before = device_of(model)
    try:
        model.to(device)
        yield
    finally:
        model.to(before)


@contextlib.contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """torch's generators of the CPU and of ``device`` start from ``seed`` inside, and are as before afterwards."""
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed, which would also seed the GPUs that the caller uses for something else.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
