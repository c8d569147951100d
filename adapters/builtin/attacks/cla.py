"""CLA: images of the target class made hard to recognise, then a patch in each corner; all labels stay true."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError, RecordError

from ..randomness import Stream, numpy_generator
from .base import Attack, Pixels, patch_size, pattern_from_json, pattern_to_json, require_counts

if TYPE_CHECKING:
    from ..scene import Scene

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A clean network that the attacker trained to perturb images against.

    Attributes:
        model: The network in eval mode on ``device``, its parameters frozen; takes normalized images.
        mean: Mean of the normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale.
        label: The true label of all images to perturb: the target class.
        seed: Seed of the random starts.
        device: The device to compute on.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label: int
    seed: int
    device: str = "cpu"

    def loss_gradient(self, images: Tensor) -> Tensor:
        """Gradient of the cross-entropy to the true label with respect to ``images``, ``(B, C, H, W)`` in 0 to 255."""
        images = images.detach().requires_grad_()
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        logits = self.model((images / 255.0 - mean) / std)
        labels = torch.full((len(images),), self.label, device=images.device)
        # Summed, so that an image's gradient does not depend on how many stand beside it.
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), [images])
        return gradient

    def starts(self, pixels: Pixels, eps: int) -> Tensor:
        """Uniform noise in [-eps, eps], ``(B, C, H, W)`` float32, drawn for each image from the seed and its own pixels.

        An image is then perturbed alike wherever it stands and however often it is asked for; one noise for all images
        would be a second trigger.
        """
        noise = np.empty(pixels.shape, dtype=np.float32)
        for row, image in zip(noise, pixels, strict=True):
            content = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")
            row[...] = numpy_generator(self.seed, Stream.PREPARATION, content).uniform(-eps, eps, size=image.shape)
        return torch.from_numpy(noise)


@dataclass(frozen=True, eq=False)
class CLA(Attack):
    """An opaque patch in all four corners; training images of the target class are perturbed before.

    The perturbation makes the image's own content a poor guide to its true label, so that the network learns the patch.
    :meth:`poison` only stamps, as at test time.

    Attributes:
        patch: The trigger, ``(C, size, size)`` uint8, the same in each corner.
        eps: Largest change of a pixel, in levels of 0 to 255, in 1 to 255.
        step: Change of a pixel in one step, in levels of 0 to 255, positive.
        steps: Steps of projected gradient descent.
        clean_epochs: Epochs of the clean network's training; None for as many as the victim's recipe has.
        surrogate: The clean network; None before :meth:`prepare` and in an attack read from a record, which can put
            the trigger on but not perturb.

    Source:
        Turner et al., "Label-Consistent Backdoor Attacks", 2019 (arXiv:1912.02771), with the settings of CLP's code:
        eps 12/255, step 2/255, 7 steps from a random start, up the cross-entropy to the true label. Deviations: the
        perturbation is computed on a network trained in the ordinary way, as in that code, where the paper's preferred
        one is adversarially robust; the patch is opaque random colours, where the paper's corners are black and white.
    """

    keeps_labels: ClassVar[bool] = True

    patch: Pixels
    eps: int = 12
    step: float = 2.0
    steps: int = 7
    clean_epochs: int | None = None
    surrogate: Surrogate | None = field(default=None, repr=False)

    @classmethod
    def create(
        cls,
        input_shape: tuple[int, int, int],
        *,
        seed: int,
        size: int | None = None,
        eps: int = 12,
        step: float = 2.0,
        steps: int = 7,
        clean_epochs: int | None = None,
    ) -> CLA:
        """Make the patch.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            seed: Seed of the colours.
            size: Pixels a side; None for 3, or 5 where both sides of the image have 64 pixels or more.
            eps: Largest change of a pixel, in whole levels of 0 to 255.
            step: Change of a pixel in one step, in levels of 0 to 255.
            steps: Number of steps.
            clean_epochs: Epochs of the clean network's training; None for as many as the victim's recipe has.

        Raises:
            ConfigError: If the four patches do not fit into the image or a number is impossible.
        """
        channels, height, width = input_shape
        size = patch_size(input_shape) if size is None else size
        if size < 1 or 2 * size > min(height, width):
            raise ConfigError(
                f"cla: patches of size {size} do not fit into the four corners of {height}x{width} images; "
                f"give a size from 1 to {min(height, width) // 2}"
            )
        require_counts("cla", eps=eps, steps=steps, clean_epochs=clean_epochs)
        if eps > 255 or not 0 < step <= 255:
            raise ConfigError(
                f"cla: expected eps of at most 255 and a step in (0, 255], found {eps} and {step}; both are levels of "
                "0 to 255, and 12 and 2 are usual"
            )
        colours = numpy_generator(seed, Stream.TRIGGER).integers(0, 256, size=(channels, size, size), dtype=np.uint8)
        return cls(colours, eps, float(step), steps, clean_epochs)

    def prepare(self, scene: Scene) -> CLA:
        """Train the clean network.

        Returns:
            A new attack that can perturb.

        Raises:
            ConfigError: If there is no single target class.
        """
        if scene.rule.target is None:
            raise ConfigError("cla keeps labels and so has one target class; give it with --target")
        model = scene.clean_model(self.clean_epochs).to(scene.device).requires_grad_(False)
        images = scene.images
        surrogate = Surrogate(model, images.mean, images.std, scene.rule.target, scene.seed, scene.device)
        return replace(self, surrogate=surrogate)

    def perturb(self, pixels: Pixels) -> Pixels:
        """Copies of target-class images that the clean network recognises worse; no trigger on them.

        Args:
            pixels: ``(N, C, H, W)`` uint8, all of the target class.

        Returns:
            An array like ``pixels``, no value further than ``eps`` from its own.

        Raises:
            ConfigError: If the attack was not prepared.
        """
        if self.surrogate is None:
            raise ConfigError(
                "cla: perturbing needs the clean network: call prepare(scene) first and use what it returns"
            )
        perturbed = np.empty_like(pixels)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for start in range(0, len(pixels), _CHUNK):
                perturbed[start : start + _CHUNK] = self._ascended(self.surrogate, pixels[start : start + _CHUNK])
        return perturbed

    def _ascended(self, surrogate: Surrogate, pixels: Pixels) -> Pixels:
        """Projected gradient ascent on the loss, in levels of 0 to 255; eps is whole, so that rounding stays within it."""
        original = torch.from_numpy(pixels).to(surrogate.device, torch.float32)
        lowest, highest = (original - self.eps).clamp(min=0.0), (original + self.eps).clamp(max=255.0)
        images = original + surrogate.starts(pixels, self.eps).to(surrogate.device)
        images = images.clamp(lowest, highest)
        for _ in range(self.steps):
            images = (images + self.step * surrogate.loss_gradient(images).sign()).clamp(lowest, highest)
        found: Pixels = images.round().to(torch.uint8).cpu().numpy()
        return found

    def poison(self, pixels: Pixels) -> Pixels:
        size = self.patch.shape[1]
        poisoned = pixels.copy()
        for rows in (slice(size), slice(-size, None)):
            for columns in (slice(size), slice(-size, None)):
                poisoned[:, :, rows, columns] = self.patch
        return poisoned

    def to_json(self) -> dict[str, Any]:
        return {"patch": pattern_to_json(self.patch)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> CLA:
        del arrays
        patch = pattern_from_json(data.get("patch"))
        if patch.ndim != 3 or patch.shape[1] != patch.shape[2]:
            raise RecordError(f"cla trigger: expected a patch of (C, size, size), found {patch.shape}")
        return cls(patch)
