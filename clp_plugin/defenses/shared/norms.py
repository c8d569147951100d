"""The BatchNorm layers that a defense masks, their forward pass with other weights, and pruning by what was learned."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.choice import Candidate, choose
from clp_plugin.defenses.shared.options import is_count, require_in_range
from clp_plugin.defenses.shared.training import Labeled, benign_images, forward, hold_out
from clp_plugin.errors import ConfigError
from clp_plugin.masking.apply import apply_mask
from clp_plugin.networks.devices import device_of
from clp_plugin.networks.kinds import is_batchnorm
from clp_plugin.networks.precision import memory_format, resolve
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.types import BudgetKind, Mask, Progress

# Of ANP's and RNP's published sweeps, from the weakest pruning to the strongest.
THRESHOLDS = tuple(step / 20 for step in range(20))


def affine_norms(model: nn.Module, method: str) -> dict[str, nn.Module]:
    """BatchNorm layers with weights and running statistics, by name in the bare network; a bias may be absent.

    Raises:
        ConfigError: If there is none.
    """
    found = {
        name: module
        for name, module in unwrap(model).named_modules()
        if is_batchnorm(module) and isinstance(module.weight, nn.Parameter) and module.running_var is not None
    }
    if not found:
        raise ConfigError(
            f"{method} acts on BatchNorm layers with weights, and this network has none; use clp, ft, fp or nad"
        )
    return found


def with_norms(
    model: nn.Module, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """The bare network as a function, with these weights and biases in its BatchNorm layers; gradients reach them.

    Args:
        model: The network; its running statistics move if it is in train mode, as always.
        weights: Layer name to weights ``(channels,)``.
        biases: Layer name to biases ``(channels,)``; layers that are left out keep their own.
    """
    network = unwrap(model)
    replaced = {f"{name}.weight": weight for name, weight in weights.items()}
    replaced |= {f"{name}.bias": bias for name, bias in (biases or {}).items()}

    def run(images: Tensor) -> Tensor:
        return torch.func.functional_call(network, replaced, (images,))  # type: ignore[no-any-return]

    return run


def mask_below(values: Mapping[str, Tensor], threshold: float) -> Mask:
    """Layer name to ``(channels,)`` scores in, channels with a score of at most ``threshold`` out."""
    return Mask({name: (score.detach().cpu() <= threshold).numpy() for name, score in values.items()})


class ScaledNorms:
    """A frozen network in train mode as a function of one factor per BatchNorm channel.

    All channels of all layers stand end to end in one vector, in the order of ``affine_norms``, so that a step on all of
    them is a single operation.

    Args:
        network: The network, which is taken over: frozen, in train mode from now on, its running statistics move. Give
            a copy.
        method: Name of the defense, for messages.

    Attributes:
        channels: Number of channels of all layers together.

    Raises:
        ConfigError: If there is no BatchNorm with weights.
    """

    def __init__(self, network: nn.Module, method: str) -> None:
        self._norms: dict[str, Any] = dict(affine_norms(network, method))
        self._network = network.requires_grad_(False).train()
        self._sizes = [norm.weight.numel() for norm in self._norms.values()]
        self._with_bias = {name for name, norm in self._norms.items() if norm.bias is not None}
        self._weights = torch.cat([norm.weight for norm in self._norms.values()])
        self._biases = torch.cat(
            [torch.zeros_like(norm.weight) if norm.bias is None else norm.bias for norm in self._norms.values()]
        )
        self.channels = sum(self._sizes)

    def logits(self, images: Tensor, of_weights: Tensor, of_biases: Tensor | None = None) -> Tensor:
        """Logits with scaled weights and biases; gradients reach the factors and nothing else.

        Args:
            images: A batch of images, ``(B, C, H, W)``, normalized.
            of_weights: ``(channels,)`` factors of the weights.
            of_biases: ``(channels,)`` factors of the biases; None leaves them as they are.

        Returns:
            ``(B, classes)`` float32.
        """
        biases = {}
        if of_biases is not None:
            scaled = self.by_layer(self._biases * of_biases)
            # functional_call of older torch deletes a parameter that is None when it puts it back.
            biases = {name: bias for name, bias in scaled.items() if name in self._with_bias}
        return forward(with_norms(self._network, self.by_layer(self._weights * of_weights), biases), images)

    def by_layer(self, values: Tensor) -> dict[str, Tensor]:
        """``(channels,)`` of all layers in, layer name to ``(channels of the layer,)`` out."""
        return dict(zip(self._norms, values.split(self._sizes), strict=True))


def working_copy(model: nn.Module) -> nn.Module:
    """A copy of the bare network in the memory layout that is fastest to train in; the model stays as it is."""
    device = device_of(model)
    return copy.deepcopy(unwrap(model)).to(memory_format=memory_format(resolve("auto", device), device))


@dataclass(frozen=True)
class MaskLearning(ABC):
    """A defense that learns a number in [0, 1] for each BatchNorm channel and prunes the channels where it is low.

    Attributes:
        threshold: Prune at or below it, in [0, 1]; None for the largest that costs at most ``tolerance`` on held-out
            benign images, out of 0, 0.05, ..., 0.95.
        tolerance: Largest drop of accuracy on the held-out images, a fraction in [0, 1].
        held_out: Share of the benign images that is only chosen by, in (0, 1). It is held out even when ``threshold`` is
            given or the test set decides, so that what is learned does not depend on how the threshold is chosen.
        batch_size: Images a step.
        momentum: Momentum of SGD, in [0, 1).
        crop_padding: Random shift by up to so many pixels, padded with the data set's mean colour.
        flip: Mirror half of the images left to right.

    Raises:
        ConfigError: If a value is out of its range, before anything is run.
    """

    threshold: float | None = None
    tolerance: float = 0.05
    held_out: float = 0.2
    batch_size: int = 128
    momentum: float = 0.9
    crop_padding: int = 4
    flip: bool = True
    budget: ClassVar[BudgetKind] = "benign"
    chooses: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        require_in_range(
            self,
            ("threshold", self.threshold is None or 0 <= self.threshold <= 1, "in [0, 1] or none"),
            ("tolerance", 0 <= self.tolerance <= 1, "in [0, 1]"),
            ("held_out", 0 < self.held_out < 1, "in (0, 1)"),
            ("batch_size", is_count(self.batch_size, 2), "a whole number, at least 2 (BatchNorm needs several images)"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("crop_padding", is_count(self.crop_padding, 0), "a whole number, at least 0"),
        )

    @abstractmethod
    def learn(
        self, model: nn.Module, data: Labeled, *, seed: int, progress: Progress | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Layer name to ``(channels,)`` in [0, 1], low where the backdoor is suspected, and what to log.

        Args:
            model: The attacked model in eval mode; it is not changed.
            data: At least 2 images, on the model's device.
            seed: Seed of all that is random.
            progress: Called with steps done and steps in all.

        Raises:
            ConfigError: If there is no BatchNorm with weights, or a loss becomes NaN or infinite.
        """

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Learn, choose a threshold, set the weights of the channels below it to 0; every bias stays, as published.

        Raises:
            ConfigError: If there is no BatchNorm with weights, fewer than 2 images to learn from, or a loss becomes NaN
                or infinite.
        """
        affine_norms(model, self._name)
        data, held_out = self._split(benign_images(budget, model), seed)
        values, log = self.learn(model, data, seed=seed, progress=progress)
        grid = sorted({*THRESHOLDS, *([] if self.threshold is None else [self.threshold])})
        chosen = choose(
            model,
            [Candidate(threshold, mask_below(values, threshold)) for threshold in grid],
            fixed=self.threshold,
            held_out=held_out,
            tolerance=self.tolerance,
            judge=budget.judge,
            keep_bias=True,
        )
        apply_mask(model, chosen.mask, keep_bias=True)
        return Repaired(model.eval(), chosen.mask, {"threshold": chosen.value, "keep_bias": True, **log, **chosen.log})

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _split(self, images: Labeled, seed: int) -> tuple[Labeled, Labeled]:
        data, held_out = hold_out(images, self.held_out, seed)
        if len(data) < 2:
            raise ConfigError(
                f"{self._name}: expected at least 2 images to learn from, found {len(data)} beside {len(held_out)} held "
                "out; give more benign images or lower held_out"
            )
        return data, held_out
