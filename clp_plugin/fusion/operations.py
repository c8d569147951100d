"""Operations of PyTorch by what they do with channels: move them, copy them, or compute each by itself."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

MOVES = {
    getattr(aten, name)
    for name in (
        "view _unsafe_view reshape permute transpose t squeeze unsqueeze expand slice select split split_with_sizes "
        "unbind cat stack clone contiguous alias detach lift_fresh flip roll repeat narrow unfold movedim "
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle _reshape_alias diagonal copy_ as_strided"
    ).split()
    if hasattr(aten, name)
}
COPIES = {aten._to_copy, aten.clone, aten.contiguous, aten.native_dropout}
_CHANNELWISE = {
    getattr(aten, name)
    for name in (
        "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
        "_adaptive_avg_pool3d adaptive_max_pool2d adaptive_avg_pool1d mean sum amax max_pool2d upsample_nearest2d "
        "upsample_bilinear2d native_layer_norm native_group_norm native_batch_norm softmax _softmax rrelu_with_noise "
        "std var linalg_vector_norm cumsum constant_pad_nd max prelu _prelu_kernel rms_norm _fused_rms_norm hardswish "
        "hardswish_ log_sigmoid_forward amin prod adaptive_max_pool3d upsample_nearest1d upsample_bicubic2d "
        "upsample_trilinear3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d _log_softmax"
    ).split()
    if hasattr(aten, name)
}


def is_channelwise(func: Any) -> bool:
    """Whether an operation computes each channel of its output from the same channel of its inputs."""
    return func.overloadpacket in _CHANNELWISE or _is_pointwise(func)


def _is_pointwise(func: Any) -> bool:
    """Ask PyTorch's own tag, which some in-place forms (``hardswish_``) lack although their plain forms carry it."""
    plain = getattr(aten, func.overloadpacket.__name__.removesuffix("_"), None)
    forms = [func] if plain is None else [func, *(getattr(plain, name) for name in plain.overloads())]
    return any(torch.Tag.pointwise in form.tags for form in forms)
