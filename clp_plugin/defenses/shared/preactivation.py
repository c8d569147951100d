"""Shared by EP and BNP: watching what enters each BatchNorm, pruning a layer's outliers, keeping biases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Judge, Repaired
from clp_plugin.defenses.shared.choice import ORACLE_U, Candidate, choose_by_test_set
from clp_plugin.defenses.shared.norms import affine_norms
from clp_plugin.errors import ConfigError, ScoreError
from clp_plugin.masking.apply import apply_mask
from clp_plugin.networks.devices import device_of
from clp_plugin.networks.hooks import hooked
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.selection.outliers import outliers
from clp_plugin.types import Floats, ImageSet, Mask, Progress

_BATCH = 64


def watch_norm_inputs(
    model: nn.Module,
    images: ImageSet | None,
    method: str,
    see: Callable[[str, Tensor], object],
    progress: Progress | None = None,
) -> None:
    """Show what enters each BatchNorm in one pass in eval mode; no hook stays.

    Args:
        model: The model, in eval mode afterwards and otherwise unchanged.
        images: The images to show; they pass in batches, so that memory does not depend on their number.
        method: Name of the method, for messages.
        see: Called for each batch with a layer's name and its input ``(images, channels, positions)`` on the model's
            device. Only the first call of a module that runs several times counts; a module that does not run, or not
            once for each image, is never shown.
        progress: Called with images done and images in all.

    Raises:
        ConfigError: If there is no BatchNorm with weights, or there are fewer than 2 images.
    """
    norms = affine_norms(model, method)
    if images is None or len(images) < 2:
        raise ConfigError(f"{method}: expected at least 2 images, found {0 if images is None else len(images)}")
    network = unwrap(model).eval()
    device, dtype = device_of(network), next(network.parameters()).dtype
    done = 0
    with torch.inference_mode():
        for batch in images.batches(_BATCH):
            with _watching(norms, len(batch), see):
                network(batch.to(device, dtype))
            done += len(batch)
            if progress is not None:
                progress(done, len(images))


def prune_outliers(
    model: nn.Module, suspicion: Mapping[str, Floats], u: float, judge: Judge | None, log: Mapping[str, Any]
) -> Repaired:
    """Set the weights of each layer's outliers to 0 in place; every bias stays, as in the public codes of EP and BNP.

    Args:
        model: The model to prune.
        suspicion: Layer name to ``(channels,)``, more suspicious if larger; NaN for a channel of which nothing is known.
        u: Prune above mean + u * std (population) of the layer. A layer with fewer than 2 known channels, or equal ones,
            prunes nothing.
        judge: If given, u is chosen by the test set instead.
        log: More to log.
    """
    found = {**log, "u": u, "keep_bias": True}
    mask = _mask(suspicion, u)
    if judge is not None:
        candidates = [Candidate(strength, _mask(suspicion, strength)) for strength in ORACLE_U]
        chosen = choose_by_test_set(model, candidates, judge, keep_bias=True)
        mask, found = chosen.mask, {**found, "u": chosen.value, **chosen.log}
    apply_mask(model, mask, keep_bias=True)
    return Repaired(model, mask, found)


def require_finite(name: str, values: Tensor) -> None:
    """Refuse a layer whose inputs are broken.

    Args:
        name: Name of the layer.
        values: Values of each channel, ``(..., channels)``.

    Raises:
        ScoreError: If there is NaN or Inf; names the layer and the first channel.
    """
    broken = torch.nonzero(~values.isfinite().reshape(-1, values.shape[-1]).all(0)).flatten()
    if len(broken):
        raise ScoreError(
            f"layer {name!r}: its input is NaN or Inf in {len(broken)} of {values.shape[-1]} channels "
            f"(first: {int(broken[0])}); the network's weights or statistics are broken"
        )


def _watching(
    norms: Mapping[str, nn.Module], images: int, see: Callable[[str, Tensor], object]
) -> contextlib.AbstractContextManager[None]:
    seen: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def show(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in seen and len(inputs[0]) % images == 0:
                seen.add(name)
                see(name, _by_position(inputs[0], images))

        return show

    return hooked(norm.register_forward_pre_hook(hook(name)) for name, norm in norms.items())


def _by_position(maps: Tensor, images: int) -> Tensor:
    """``(rows, channels, ...)`` to ``(images, channels, positions)``, at least float32.

    Several rows an image (tokens flattened into the batch, as in LeViT) are positions of that image's map.
    """
    flat = maps.to(torch.promote_types(maps.dtype, torch.float32)).reshape(*maps.shape[:2], -1)
    by_position: Tensor = flat.unflatten(0, (images, -1)).movedim(1, 2).flatten(2)
    return by_position


def _mask(suspicion: Mapping[str, Floats], u: float) -> Mask:
    return Mask({name: outliers(values, u) for name, values in suspicion.items()})
