"""Run a model once to find what feeds what: on one random image, or on meta tensors where that fails.

The real run is tried first because torch's meta kernels import its compiler, which takes a second of each command; meta
tensors serve where the device lacks a kernel for the model's numbers, or the memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from clp_plugin.errors import PairingError
from clp_plugin.fusion.following import ChannelFollower
from clp_plugin.fusion.graph import ChannelGraph
from clp_plugin.networks.copying import copy_of, shapes_of
from clp_plugin.networks.kinds import CONV_TYPES, is_batchnorm
from clp_plugin.networks.outputs import logits_of, tensors_in

_GPU = ("cuda", "nvidia", "same device")  # words of torch's errors


def trace(model: nn.Module, input_shape: Sequence[int], *, training_modules: Sequence[str] = ()) -> ChannelGraph:
    """Follow the channels of one run in eval mode.

    Args:
        model: Any module that takes one image batch. A copy is run, so that nothing of it changes.
        input_shape: Shape of one image, ``(C, H, W)`` or what the model takes without the batch dimension.
        training_modules: Names of modules whose own flag ``training`` is set during the run (not their children's), to
            reach branches such as auxiliary heads.

    Raises:
        PairingError: If neither a real run nor one on meta tensors succeeds.
    """
    shape = (1, *input_shape)
    try:
        return _run_for_real(model, shape, training_modules)
    except Exception as error:  # any model code may fail, in any way
        try:
            return _run_on_meta(model, shape, training_modules)
        except Exception as meta_error:
            raise PairingError(
                f"the model cannot be run on one input of shape {shape} to find its layers: {type(error).__name__}: "
                f"{error} (on meta tensors: {type(meta_error).__name__}); {_advice(error)}"
            ) from error


def _advice(error: Exception) -> str:
    """Advice against the failure of a network's own code."""
    text = str(error).lower()
    if isinstance(error, TypeError) and "positional argument" in text:
        return "it takes something else than one batch of images: wrap it in a module that does, in a file for --arch"
    if any(word in text for word in _GPU):
        return "its forward moves tensors to a GPU: take .cuda() out, or write .to(x.device), which works everywhere"
    return "give the input size that it was made for (--input-size C,H,W)"


def _run_on_meta(model: nn.Module, shape: tuple[int, ...], training_modules: Sequence[str]) -> ChannelGraph:
    network = shapes_of(model)
    numbers = (t.dtype for t in (*network.parameters(), *network.buffers()) if t.is_floating_point())
    with torch.device("meta"):
        return _follow(network, torch.empty(shape, dtype=next(numbers, torch.float32)), training_modules, "meta")


def _run_for_real(model: nn.Module, shape: tuple[int, ...], training_modules: Sequence[str]) -> ChannelGraph:
    network = copy_of(model)
    first = next(network.parameters(), torch.empty(0))
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    return _follow(network, image, training_modules, "real forward pass")


def _follow(network: nn.Module, image: torch.Tensor, training_modules: Sequence[str], how: str) -> ChannelGraph:
    follower = ChannelFollower()
    follower.graph.how = how
    follower.add_input(image)
    network.eval()
    for name in training_modules:
        network.get_submodule(name).training = True
    for name, module in network.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
            module.register_forward_pre_hook(follower.starting(name), prepend=True)
            module.register_forward_hook(follower.ending)
        if is_batchnorm(module) or isinstance(module, (*CONV_TYPES, nn.Linear)):
            module.register_forward_pre_hook(follower.entering(name), with_kwargs=True, prepend=True)
            module.register_forward_hook(follower.leaving(name, module))
    with torch.no_grad(), _no_fused_attention(), follower:
        output = network(image)
    follower.graph.outputs = sorted({n for t in tensors_in(output) for n in follower.parents_of(t)})
    classes = len(follower.channels_of(logits_of(output)))
    outputs = [follower.channels_of(tensor) for tensor in tensors_in(output)]
    follower.graph.logits = [channels for channels in outputs if len(channels) == classes]
    return follower.graph


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    """nn.MultiheadAttention's inference fast path has no meta kernel; the slow path computes the same."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
