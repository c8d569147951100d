"""What a network's first BatchNorm tells of the images that it was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.networks.hooks import eval_mode, hooked
from clp_plugin.networks.kinds import is_batchnorm
from clp_plugin.surrogate.pixels import PixelNetwork


@torch.no_grad()
def remembered_pixel(network: PixelNetwork, images: Tensor) -> float | None:
    """Mean pixel of the training images, as the first BatchNorm remembers it behind the given normalization.

    The mean of a convolution's channel k over smooth images is its bias + the sum over inputs c of mean_c times the sum of
    its kernel W_kc; the running means of the BatchNorm that it feeds are known, so the means follow by least squares.
    Right to a few hundredths, and lower by as much as padding with black did in training: a value far outside of [0, 1]
    says that the normalization is another one.

    Args:
        network: The network behind its normalization.
        images: One or more images, ``(B, C, H, W)``, pixels in [0, 1]; their content does not matter.

    Returns:
        The mean over channels; None if no BatchNorm follows a convolution of the inputs themselves.

    Source:
        Ours.
    """
    inputs = network.normalized(images[:1])
    convolved: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def hear_conv(module: nn.Module, heard: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and module.groups == 1 and heard[0] is inputs:
            convolved[id(output)] = (module, output)

    def hear_norm(module: nn.Module, heard: tuple[Tensor, ...]) -> None:
        if id(heard[0]) in convolved:
            pairs.append((convolved[id(heard[0])][0], module))

    modules = list(network.network.modules())
    convs = (one.register_forward_hook(hear_conv) for one in modules if isinstance(one, nn.Conv2d))
    norms = (one.register_forward_pre_hook(hear_norm) for one in modules if is_batchnorm(one))
    with eval_mode(network.network), hooked(convs), hooked(norms):
        network.network(inputs)
    if not pairs:
        return None
    conv, norm = pairs[0]
    kernels = conv.weight.double().sum((2, 3)).cpu().numpy()
    means = norm.get_buffer("running_mean").double().cpu().numpy()
    if conv.bias is not None:
        means = means - conv.bias.double().cpu().numpy()
    found = np.linalg.lstsq(kernels, means, rcond=None)[0]
    return float(np.mean(found * np.array(network.std) + np.array(network.mean)))
