"""Trigger-activated change (TAC): how much each channel moves when the trigger is attached. Diagnosis only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clp_plugin.errors import ConfigError, RecordError, unknown_name
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.networks.hooks import eval_mode, hooked
from clp_plugin.scoring.kernels import batchnorm_gain
from clp_plugin.types import Floats, Progress, Record

_ORDERS = {"l2": 2, "l1": 1}


def trigger_activated_change(
    view: FusedView,
    record: Record,
    *,
    norm: Literal["l2", "l1"] = "l2",
    max_images: int | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Floats]:
    """Mean over test images of the norm of the change of each channel's map at the linear layer's output.

    It takes one pass over clean and triggered twins; memory does not depend on their number. A BatchNorm is watched at
    its input, and the change multiplied by its gain, which is the change at its linear output even where the module
    contains the activation.

    Args:
        view: The linear layers of the model to watch, usually ``fuse(record.model, record.input_shape)``.
        record: Supplies the image pairs.
        norm: ``l2``: the paper's. ``l1``: sum of absolute changes over positions, BackdoorBench's.
        max_images: Use only the first so many pairs.
        batch_size: Pairs per forward pass.
        device: The device to run on.
        progress: Called with pairs done and pairs in all.

    Returns:
        Layer name to ``(channels,)`` float64; NaN for a layer that does not run in eval mode. The model's modes are as
        before and it is back on its device; no hook stays.

    Raises:
        ConfigError: If ``norm`` is unknown or ``max_images`` or ``batch_size`` is below 1.
        RecordError: If the record has no image pairs.

    Source:
        CLP 4.2. It needs the trigger, so no defense may use it.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from clp_plugin import fuse, record_from, trigger_activated_change
        >>> from clp_plugin.records.triggers import Trigger
        >>> white = Trigger.patch(np.full((1, 2, 2), 255.0), shape=(3, 4, 4), at="bottom-right")
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> record = record_from(model, np.zeros((6, 3, 4, 4), np.uint8), np.arange(6) % 2, trigger=white, target=0)
        >>> tac = trigger_activated_change(fuse(record.model, record.input_shape), record)
        >>> tac["1"].shape
        (4,)
    """
    pairs = record.triggered
    total = _pairs_to_use(record, norm, max_images, batch_size)
    model = view.model
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    sums: dict[str, Tensor] = {}
    with torch.inference_mode(), _running_on(model, device), _watching(view, _ORDERS[norm], sums):
        for start in range(0, total, batch_size):
            index = np.arange(start, min(start + batch_size, total))
            clean = next(record.clean.take(pairs.clean_index[index]).batches(len(index)))
            triggered = next(pairs.images.take(index).batches(len(index)))
            model(torch.cat([clean, triggered]).to(device, dtype))
            if progress is not None:
                progress(int(index[-1]) + 1, total)
    return {layer.name: _mean_change(view, layer, sums, total) for layer in view.layers}


def _pairs_to_use(record: Record, norm: str, max_images: int | None, batch_size: int) -> int:
    if norm not in _ORDERS:
        raise ConfigError(unknown_name("TAC norm", norm, _ORDERS))
    for name, value in (("max_images", max_images), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected at least 1, found {value}")
    found = len(record.triggered.images)
    if not found:
        raise RecordError(f"{record.provenance.path}: expected triggered test images to compare with, found none")
    return found if max_images is None else min(max_images, found)


@contextlib.contextmanager
def _running_on(model: nn.Module, device: str) -> Iterator[None]:
    """Eval mode on ``device``; afterwards every module has its mode again, and the model is where it was."""
    home = next((p.device for p in model.parameters()), torch.device(device))
    with eval_mode(model.to(device)):
        try:
            yield
        finally:
            model.to(home)


def _watching(view: FusedView, order: int, sums: dict[str, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Hooks that add each batch's change of every layer to ``sums``; the first call of a shared module counts."""
    seen: set[str] = set()
    images = 0

    def start(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal images
        seen.clear()
        images = len(inputs[0])

    def add(name: str, maps: Tensor) -> None:
        if name in seen or len(maps) % images:
            return
        seen.add(name)
        change = _change_per_channel(maps, view.modules[name], order, images // 2)
        sums[name] = sums[name] + change if name in sums else change

    def on_input(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: add(name, inputs[0])

    def on_output(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, output: add(name, output)

    def handles() -> Iterator[RemovableHandle]:
        yield view.model.register_forward_pre_hook(start)
        for layer in view.layers:
            module = view.modules[layer.name]
            if layer.norm is not None:
                yield module.register_forward_pre_hook(on_input(layer.name))
            else:
                yield module.register_forward_hook(on_output(layer.name))

    return hooked(handles())


def _change_per_channel(maps: Tensor, module: nn.Module, order: int, pairs: int) -> Tensor:
    """Sum over pairs of the norm of the change, ``(channels,)``; ``maps`` is the clean half, then the triggered one.

    Several rows an image (tokens flattened into the batch, as in LeViT) are positions of that image's map.
    """
    clean, triggered = maps.chunk(2)
    change = triggered - clean
    if isinstance(module, nn.Linear) and change.ndim > 2:
        change = change.movedim(-1, 1)
    if len(change) != pairs:
        change = change.unflatten(0, (pairs, -1)).movedim(2, 1)
    wide = torch.promote_types(change.dtype, torch.float32)  # half precision must not be summed in half precision
    if change.ndim == 2:
        return change.to(wide).abs().sum(0)
    sizes: Tensor = torch.linalg.vector_norm(change.flatten(2), ord=order, dim=2, dtype=wide)
    return sizes.sum(0)


def _mean_change(view: FusedView, layer: LinearLayer, sums: dict[str, Tensor], total: int) -> Floats:
    if layer.name not in sums:
        return np.full(layer.channels, np.nan)
    mean = sums[layer.name].double().cpu().numpy() / total
    return mean if layer.norm is None else mean * batchnorm_gain(view.modules[layer.norm]).numpy()
