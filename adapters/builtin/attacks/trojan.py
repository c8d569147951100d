"""Trojan: a patch whose pixels are optimised to excite chosen units of a clean network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.images import ArrayImages

from ..randomness import Stream, numpy_generator, torch_generator
from .badnets import BadNets
from .base import Attack, Pixels, fitting_patch_size, pattern_from_json, pattern_to_json, require_counts

if TYPE_CHECKING:
    from ..scene import Scene

_BATCH = 64
_LEARNING_RATE = 0.05  # on the [0, 1] scale: a pixel crosses its whole range in some 20 steps


@dataclass(frozen=True, eq=False)
class Trojan(Attack):
    """A patch near the bottom-right corner that drives a few units of a clean network as high as it can.

    Attributes:
        patch: ``(C, size, size)`` uint8; seeded noise before :meth:`prepare`, optimised after it.
        inset: Pixels between the patch and the image's edges.
        units: Positions of the classifier head's inputs that the patch excites; empty before :meth:`prepare`.
        neurons: Number of units to choose.
        steps: Gradient steps on the patch.
        clean_epochs: Epochs of the clean network's training; None for as many as the victim's recipe has.

    Source:
        Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018. Deviations: the mask is a square and the first
        patch is noise, where the paper has a logo; the units are driven as high as possible, not to a given value; the
        patch is optimised on real training images, which this attacker has, not alone; and the victim is trained from
        scratch on poisoned training images, as in the benchmarks, where the paper retrains a finished model on images
        it reverse-engineered. The units are those with the largest sum of absolute weights in the head, as there.
    """

    patch: Pixels
    inset: int = 0
    units: tuple[int, ...] = ()
    neurons: int = 2
    steps: int = 200
    clean_epochs: int | None = None

    @classmethod
    def create(
        cls,
        input_shape: tuple[int, int, int],
        *,
        seed: int,
        size: int | None = None,
        inset: int = 0,
        neurons: int = 2,
        steps: int = 200,
        clean_epochs: int | None = None,
    ) -> Trojan:
        """Make the mask and the noise that the optimisation starts from.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            seed: Seed of the noise.
            size: Pixels a side; None for 3, or 5 where both sides of the image have 64 pixels or more.
            inset: Pixels between the patch and the image's edges.
            neurons: Number of units to excite.
            steps: Gradient steps on the patch, each on 64 training images.
            clean_epochs: Epochs of the clean network's training; None for as many as the victim's recipe has.

        Raises:
            ConfigError: If the patch does not fit into the image or a number is impossible.
        """
        size = fitting_patch_size("trojan", input_shape, size, inset)
        require_counts("trojan", neurons=neurons, steps=steps, clean_epochs=clean_epochs)
        shape = (input_shape[0], size, size)
        noise = numpy_generator(seed, Stream.TRIGGER).integers(0, 256, size=shape, dtype=np.uint8)
        return cls(noise, inset, (), neurons, steps, clean_epochs)

    def prepare(self, scene: Scene) -> Trojan:
        """Train a clean network, choose its units and optimise the patch.

        Returns:
            A new attack with the optimised patch.

        Raises:
            ConfigError: If the network ends in no linear layer, or in one with too few inputs.
        """
        model = scene.clean_model(self.clean_epochs)
        head = classifier_head(model)
        units = strongest_units(head, self.neurons)
        model.to(scene.device).requires_grad_(False)
        generator = torch_generator(scene.seed, Stream.PREPARATION)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            patch = self._optimised(model, head, units, scene.images, generator)
        return replace(self, patch=patch, units=units)

    def _optimised(
        self, model: nn.Module, head: nn.Linear, units: tuple[int, ...], images: ArrayImages, generator: torch.Generator
    ) -> Pixels:
        """The patch after ``steps`` steps of Adam up the mean activation of ``units``, rounded to bytes."""
        device = head.weight.device
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (images.mean, images.std))
        height, width = images.pixels.shape[2:]
        bottom, right = height - self.inset, width - self.inset
        size = self.patch.shape[1]
        patch = torch.from_numpy(self.patch).to(device, torch.float32).div(255.0).requires_grad_()
        optimizer = torch.optim.Adam([patch], lr=_LEARNING_RATE)
        for _ in range(self.steps):
            chosen = torch.randint(len(images), (_BATCH,), generator=generator).numpy()
            stamped = torch.from_numpy(images.pixels[chosen]).to(device, torch.float32).div(255.0)
            stamped[:, :, bottom - size : bottom, right - size : right] = patch
            activation = head_inputs(model, head, (stamped - mean) / std)[..., list(units)].mean()
            (patch.grad,) = torch.autograd.grad(-activation, [patch])
            optimizer.step()
            with torch.no_grad():
                patch.clamp_(0.0, 1.0)
        found: Pixels = patch.detach().mul(255.0).round().to(torch.uint8).cpu().numpy()
        return found

    def poison(self, pixels: Pixels) -> Pixels:
        return BadNets(self.patch, inset=self.inset).poison(pixels)

    def to_json(self) -> dict[str, Any]:
        return {"patch": pattern_to_json(self.patch), "inset": self.inset, "units": list(self.units)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Trojan:
        del arrays
        inset, units = data.get("inset"), data.get("units")
        if type(inset) is not int or inset < 0:
            raise RecordError(f"trojan trigger: expected an inset of at least 0, found {inset!r}")
        if not isinstance(units, list) or any(type(unit) is not int or unit < 0 for unit in units):
            raise RecordError(f"trojan trigger: expected a list of units, found {units!r}")
        patch = pattern_from_json(data.get("patch"))
        if patch.ndim != 3 or patch.shape[1] != patch.shape[2]:
            raise RecordError(f"trojan trigger: expected a patch of (C, size, size), found {patch.shape}")
        return cls(patch, inset, tuple(units))


def classifier_head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a network, in the order of registration.

    Raises:
        ConfigError: If there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"trojan: expected a network with a linear classifier, found none in {type(model).__name__}")
    return linear[-1]


def strongest_units(head: nn.Linear, count: int) -> tuple[int, ...]:
    """The inputs of ``head`` with the largest sum of absolute weights, strongest first.

    Raises:
        ConfigError: If the head has fewer inputs.
    """
    if count > head.in_features:
        raise ConfigError(
            f"trojan: asks for {count} neurons, but the classifier has {head.in_features} inputs; lower neurons"
        )
    return tuple(head.weight.detach().abs().sum(dim=0).topk(count).indices.tolist())


def head_inputs(model: nn.Module, head: nn.Linear, images: Tensor) -> Tensor:
    """The inputs of ``head`` when ``model`` sees normalized ``images``, ``(B, ..., features)``, with their graph."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return seen[-1]
