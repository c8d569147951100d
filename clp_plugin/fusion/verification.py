"""Check a fused view on real tensors, independently of how it was found.

Two experiments in float64: (1) every BatchNorm of a fused layer is neutralized and fed what the fused kernels of the
convolutions that the view names compute, and the network's outputs are compared; (2) one filter of a convolution is
changed, and the channels that move at the input of its BatchNorm are compared with those that the view names.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.hooks import hooked
from clp_plugin.networks.kinds import is_batchnorm
from clp_plugin.networks.outputs import tensors_in

_MOVED = 1e-9  # relative change above which a channel counts as moved, in float64


@dataclass(frozen=True)
class Verification:
    """The findings of the two experiments.

    Attributes:
        error: Largest relative difference of the outputs with fused kernels in place of the pairs.
        replaced: Layers whose pairs were replaced.
        skipped: Fused layers that could not be (called twice, or reshaped between convolution and norm).
        perturbed: Filters changed in experiment 2.
        wrong: Layers where other channels moved than the view names.
    """

    error: float
    replaced: int
    skipped: tuple[str, ...]
    perturbed: int
    wrong: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no output differs by more than rounding, and no channel moved that the view does not name."""
        return self.error < 1e-9 and not self.wrong


def verify(view: FusedView, input_shape: Sequence[int], *, max_perturbed: int = 12, seed: int = 0) -> Verification:
    """Run both experiments on a float64 copy of the model.

    Args:
        view: The view to check.
        input_shape: Shape of one input, ``(C, H, W)``.
        max_perturbed: Number of layers, spread over the network, for experiment 2 (one forward pass each).
        seed: Seed of the random input, statistics and perturbations.
    """
    model = copy_of(view.model).double().eval()
    modules = dict(model.named_modules())
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((2, *input_shape), generator=generator, dtype=torch.float64)
    calls = Counter(node.module for node in view.graphs[0].nodes)
    reached = [layer for layer in view.layers if layer.kind == "fused" and calls[layer.name]]
    fused = [layer for layer in reached if max(calls[name] for name in (layer.name, *layer.conv)) == 1]
    with torch.no_grad():
        _calibrate_norms(model, image, generator)
        step = max(1, len(fused) // max_perturbed)
        chosen = fused[::step][:max_perturbed]
        wrong = tuple(layer.name for layer in chosen if not _moves_as_named(model, modules, layer, image, generator))
        expected = tensors_in(model(image))
        with _fused_in_place(modules, fused) as state:
            found = tensors_in(model(image))
    error = max((_relative(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    skipped = state.skipped | {layer.name for layer in reached if layer not in fused}
    wrong = tuple(sorted({*wrong, *state.too_early}))
    return Verification(error, len(reached) - len(skipped), tuple(sorted(skipped)), len(chosen), wrong)


def _calibrate_norms(model: nn.Module, image: Tensor, generator: torch.Generator) -> None:
    """Random statistics near those of the input: fresh ones (0 and 1) let a wrong pairing pass and silence channels."""

    def hook(norm: Any, args: tuple[Tensor, ...]) -> None:
        values = args[0].transpose(0, 1).flatten(1)
        # A channel that hardly varies would be blown up, and rounding errors with it, layer after layer.
        spread = torch.maximum(values.std(dim=1), 0.1 * values.std()).clamp(min=1e-6)
        norm.running_mean.copy_(values.mean(dim=1) + 0.2 * spread * _between(-1, 1, spread, generator))
        norm.running_var.copy_(spread**2 * _between(0.5, 1.5, spread, generator))
        if norm.weight is not None:
            norm.weight.data.copy_(_between(0.5, 1.5, spread, generator))
        if norm.bias is not None:
            norm.bias.data.copy_(_between(-0.2, 0.5, spread, generator))

    with hooked(module.register_forward_pre_hook(hook) for module in model.modules() if is_batchnorm(module)):
        model(image)


def _between(low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low


def _relative(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-300))


class _State:
    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.skipped: set[str] = set()
        self.too_early: set[str] = set()  # norms that run before a convolution that the view names


@contextlib.contextmanager
def _fused_in_place(modules: dict[str, nn.Module], fused: list[LinearLayer]) -> Iterator[_State]:
    """Inside the block, norms pass on what fused kernels compute from the convolutions' own inputs."""
    state = _State()

    def remember(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            state.inputs[name] = args[0].clone()  # a later in-place operation must not change it

        return hook

    def handles() -> Iterator[RemovableHandle]:
        for name in {conv for layer in fused for conv in layer.conv}:
            yield modules[name].register_forward_pre_hook(remember(name))
        for layer in fused:
            norm = modules[layer.name]
            yield norm.register_forward_pre_hook(_feed(modules, layer, _affine(norm), state))

    with hooked(handles()):
        yield state


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Gain (with sign) and shift of a norm, taken before it is neutralized."""
    gain = (norm.running_var + norm.eps).rsqrt() * (norm.weight if norm.weight is not None else 1.0)
    shift = (norm.bias if norm.bias is not None else 0.0) - norm.running_mean * gain
    return gain.detach().clone(), shift.detach().clone()


def _feed(modules: dict[str, nn.Module], layer: LinearLayer, affine: tuple[Tensor, Tensor], state: _State) -> Any:
    gain, shift = affine

    def hook(norm: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        maps = args[0]
        shape = (1, -1, *[1] * (maps.ndim - 2))
        if not state.inputs.keys() >= set(layer.conv):
            state.too_early.add(layer.name)
            return None
        result = maps * gain.view(shape) + shift.view(shape)
        for position, name in enumerate(layer.conv):
            mine = torch.from_numpy(np.flatnonzero(layer.source == position))
            rows = torch.from_numpy(layer.source_channel)[mine]
            fresh = _with_scaled_filters(modules[name], rows, gain[mine], state.inputs[name])
            fresh = fresh.flatten(0, -2) if isinstance(modules[name], nn.Linear) and maps.ndim == 2 else fresh
            if fresh.shape[0] != maps.shape[0] or fresh.shape[2:] != maps.shape[2:]:
                state.skipped.add(layer.name)
                return None
            result[:, mine] = fresh[:, rows] + shift[mine].view(shape)
        _neutralize(norm)
        return (result, *args[1:])

    return hook


def _with_scaled_filters(module: Any, rows: Tensor, gain: Tensor, image: Tensor) -> Tensor:
    """Output of the module with the filters of the given rows multiplied by their gain: the fused kernel."""
    scaled = copy_of(module)
    scaled._forward_pre_hooks.clear()
    plain = (nn.Conv2d.forward, nn.Linear.forward, nn.Conv1d.forward, nn.Conv3d.forward)
    if type(scaled).forward not in plain or "weight" not in scaled._parameters:
        factors = torch.ones(_width(scaled), dtype=gain.dtype).index_copy(0, rows, gain)
        output: Tensor = scaled(image)
        return output * factors.view(1, -1, *[1] * (output.ndim - 2))
    weight = scaled.weight.detach().clone()
    weight[rows] *= gain.view(-1, *[1] * (weight.ndim - 1))
    bias = None
    if scaled.bias is not None:
        bias = scaled.bias.detach().clone()
        bias[rows] *= gain
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    result: Tensor = torch.func.functional_call(scaled, state, (image,))
    return result


def _width(module: Any) -> int:
    return int(getattr(module, "out_channels", 0) or module.out_features)


def _neutralize(norm: Any) -> None:
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
    if norm.weight is not None:
        norm.weight.data.fill_(1.0)
    if norm.bias is not None:
        norm.bias.data.zero_()


class _StopForward(Exception):  # noqa: N818 - control flow, not an error
    pass


def _moves_as_named(
    model: nn.Module, modules: dict[str, nn.Module], layer: LinearLayer, image: Tensor, generator: torch.Generator
) -> bool:
    """Change one filter; the channels that the view names must move, those of earlier convolutions must not."""
    position = len(layer.conv) - 1
    conv: Any = modules[layer.conv[position]]
    mine = layer.source == position
    filters = np.unique(layer.source_channel[mine])
    picked = int(filters[int(torch.randint(len(filters), (1,), generator=generator))])
    named = mine & (layer.source_channel == picked)
    before = _norm_input(model, modules[layer.name], image)
    dim = 1 if getattr(conv, "transposed", False) else 0
    with _disturbed(conv, picked, dim, generator):
        after = _norm_input(model, modules[layer.name], image)
    change = (after - before).abs().transpose(0, 1).flatten(1).amax(1) / before.abs().max()
    moved = (change > _MOVED).numpy()
    if dim == 1 and "weight" in conv._parameters:  # a column of a grouped transposed kernel: one channel of each group
        per_group = conv.weight.shape[1]
        named = mine & (layer.source_channel % per_group == picked % per_group)
    return bool((moved == named).all())


@contextlib.contextmanager
def _disturbed(conv: Any, picked: int, dim: int, generator: torch.Generator) -> Iterator[None]:
    """Inside the block one filter is changed; where the module computes its weight, one channel of its output is."""
    if "weight" not in conv._parameters:
        noise = float(torch.rand(1, generator=generator, dtype=torch.float64)) + 0.5

        def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            moved = output.clone()
            moved.select(-1 if isinstance(module, nn.Linear) else 1, picked).mul_(1 + noise).add_(noise)
            return moved

        with hooked([conv.register_forward_hook(hook)]):
            yield
        return
    filters = conv.weight.data.select(dim, picked % conv.weight.shape[dim])
    kept = filters.clone()
    filters.add_(torch.randn(filters.shape, generator=generator, dtype=torch.float64))
    try:
        yield
    finally:
        filters.copy_(kept)


def _norm_input(model: nn.Module, norm: nn.Module, image: Tensor) -> Tensor:
    found: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].clone())
        raise _StopForward

    with contextlib.suppress(_StopForward), hooked([norm.register_forward_pre_hook(hook)]):
        model(image)
    return found[0]
