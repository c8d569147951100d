"""Images that look to a network like those it was trained on, made from what its BatchNorms remember."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError
from clp_plugin.networks.hooks import eval_mode, hooked
from clp_plugin.networks.kinds import is_batchnorm
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.types import Progress

_DISCS = 60
_LEARNING_RATE = 0.02
_ROLL = 2  # pixels
_LOG_VARIANCE, _TOTAL_VARIATION = 0.5, 0.08


def dead_leaves(count: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Images of random overlapping discs, whose statistics resemble those of natural images.

    Args:
        count: Number of images, N.
        shape: Shape of one image, ``(C, H, W)``.
        seed: Seed of the discs.

    Returns:
        ``(N, C, H, W)`` float32 in [0, 1], on the CPU.

    Source:
        Dead leaves: Lee, Mumford, Huang: Occlusion models for natural images, IJCV 2001. Radii fall off as 1 / r^3;
        colours are a grey with a small tint (ours).
    """
    draw = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]

    def colours() -> Tensor:
        tint = 0.15 * torch.randn(count, channels, 1, 1, generator=draw)
        return (torch.rand(count, 1, 1, 1, generator=draw) + tint).clamp(0, 1)

    images = colours().expand(count, channels, height, width)
    smallest, largest = 1.0, max(height, width) / 2
    for _ in range(_DISCS):
        part = torch.rand(count, 1, 1, generator=draw)
        radius = (smallest**-2 * (1 - part) + largest**-2 * part) ** -0.5
        row, column = (torch.rand(count, 1, 1, generator=draw) * side for side in (height, width))
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        images = torch.where(inside[:, None], colours(), images)
    return images.contiguous()


def synthesise(
    network: PixelNetwork,
    input_shape: Sequence[int],
    *,
    count: int = 40,
    class_weight: float = 0.03,
    steps: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Images whose statistics at every BatchNorm are those that it remembers of its training images.

    Starts from dead leaves; Adam on the pixels lowers, with a random shift a step, the distance of the batch's means and
    log-variances from the running ones, the cross-entropy of labels i mod C at a small weight, and the total variation.
    At a large weight of the cross-entropy the images are so sure of themselves that no trigger moves them.

    Args:
        network: The network behind its normalization.
        input_shape: Shape of one image, ``(C, H, W)``.
        count: Number of images, N.
        class_weight: Weight of the cross-entropy; 0 asks for no class.
        steps: Steps of Adam.
        seed: Seed of the start and of the shifts.
        progress: Called with the steps done and the steps in all.

    Returns:
        ``(N, C, H, W)`` float32 pixels in [0, 1], on the network's device.

    Raises:
        ConfigError: If no BatchNorm of the network keeps running statistics.

    Source:
        Yin et al.: Dreaming to Distill (DeepInversion), CVPR 2020. Ours: the start, log-variances, relative weights.
    """
    require_statistics(network.network)
    draw = torch.Generator().manual_seed(seed + 1)
    pixels = dead_leaves(count, input_shape, seed=seed).to(network.device).requires_grad_()
    adam = torch.optim.Adam([pixels], lr=_LEARNING_RATE, betas=(0.5, 0.9))
    with eval_mode(network.network):
        for step in range(steps):
            adam.param_groups[0]["lr"] = _LEARNING_RATE * (0.55 + 0.45 * math.cos(math.pi * step / steps))
            shift = torch.randint(-_ROLL, _ROLL + 1, (2,), generator=draw).tolist()
            distance, logits = statistics_distance(network, pixels.roll(shift, (2, 3)))
            labels = torch.arange(count, device=pixels.device) % logits.shape[1]
            loss = distance + class_weight * F.cross_entropy(logits, labels)
            loss = loss + _TOTAL_VARIATION * _total_variation(pixels)
            (pixels.grad,) = torch.autograd.grad(loss, pixels)
            adam.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
            if progress is not None:
                progress(step + 1, steps)
    return pixels.detach()


def statistics_distance(network: PixelNetwork, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of a batch from what the BatchNorms remember, and its logits.

    Returns:
        The mean over BatchNorms of the mean over channels of (batch mean - running mean)^2 / running variance
        + 0.5 (difference of log-variances)^2; and the logits ``(B, classes)``.
    """
    distances: list[Tensor] = []

    def watch(norm: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        running_mean, running_var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        eps = float(getattr(norm, "eps", 1e-5))

        def measure(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1)
            known = running_var + eps
            means = (values.mean(1) - running_mean) ** 2 / known
            logs = ((values.var(1, unbiased=False) + eps).log() - known.log()) ** 2
            distances.append((means + _LOG_VARIANCE * logs).float().mean())

        return measure

    norms = [module for module in network.network.modules() if is_batchnorm(module)]
    with hooked(norm.register_forward_pre_hook(watch(norm)) for norm in norms):
        logits = network.logits(pixels)
    return torch.stack(distances).mean(), logits


def require_statistics(model: nn.Module) -> None:
    """Refuse a network that remembers nothing of its images.

    Raises:
        ConfigError: If no BatchNorm of it keeps running statistics.
    """
    if not any(is_batchnorm(module) for module in model.modules()):
        raise ConfigError(
            "expected a network with a BatchNorm that keeps running statistics, from which images are synthesised; "
            "found none: choose u yourself"
        )


def _total_variation(pixels: Tensor) -> Tensor:
    return pixels.diff(dim=2).abs().mean() + pixels.diff(dim=3).abs().mean()
