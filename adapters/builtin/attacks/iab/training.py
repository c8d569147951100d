"""How IAB's two networks are trained: the mask network before the victim, the generator with it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError
from clp_plugin.images import augment

from ...randomness import Stream, torch_generator
from ...scene import Scene
from ...training.hooks import Batch, BatchHook
from .nets import UShaped, blend, diversity, scaled, sharp_mask

_LEARNING_RATE, _BETAS = 0.01, (0.5, 0.9)
# The mask network's learning rate falls to a tenth after 10 and after 20 of the paper's 25 epochs.
_MASK_MILESTONES = (10 / 25, 20 / 25)


@dataclass(frozen=True)
class IABOptions:
    """The options that decide the networks and how they are trained.

    Attributes:
        width: Channels of both networks at full size.
        mask_epochs: Passes over the training images with which the mask network alone is trained.
        mask_density: Mask values up to this one cost nothing, in (0, 1).
        lambda_norm: Weight of mask values above ``mask_density``, at least 0. With it falls the share d of pixels in a
            mask: masks of 0 and 1 that are drawn independently have a diversity of about d ** -0.5, and the sum of both
            losses is least at d = (2 * lambda_norm / lambda_div) ** (-2 / 3), 0.029 for the paper's weights.
        lambda_div: Weight of the diversity of masks, and later of patterns, at least 0.
        cross_ratio: Images with a cross trigger for each with a trigger of its own, in [0, 1].
    """

    width: int = 32
    mask_epochs: int = 25
    mask_density: float = 0.032
    lambda_norm: float = 100.0
    lambda_div: float = 1.0
    cross_ratio: float = 1.0

    def __post_init__(self) -> None:
        limits = (
            ("width", isinstance(self.width, int) and self.width >= 1, "a whole number from 1 on"),
            ("mask_epochs", isinstance(self.mask_epochs, int) and self.mask_epochs >= 1, "a whole number from 1 on"),
            ("mask_density", 0 < self.mask_density < 1, "a share between 0 and 1"),
            ("lambda_norm", 0 <= self.lambda_norm < math.inf, "a weight of at least 0"),
            ("lambda_div", 0 <= self.lambda_div < math.inf, "a weight of at least 0"),
            ("cross_ratio", 0 <= self.cross_ratio <= 1, "a share from 0 to 1"),
        )
        for name, fine, expected in limits:
            if not fine:
                default = next(option.default for option in fields(self) if option.name == name)
                raise ConfigError(
                    f"iab: expected {name} to be {expected}, found {getattr(self, name)!r}; the paper's is {default}"
                )


class InputAwareHook(BatchHook):
    """Puts triggers and cross triggers on the images of a training batch, and trains the generator.

    Attributes:
        generator: The generator of the triggers; it is trained in place.
        mask: The network that says where the triggers go; it stays as it is.
        options: Weights and shares.
        poisoned: ``(N,)`` bool on the CPU, whether each training image is poisoned.
        optimizer: The generator's optimizer.
    """

    def __init__(
        self, generator: UShaped, mask: UShaped, options: IABOptions, poisoned: Tensor, device: torch.device
    ) -> None:
        self.options, self.poisoned = options, poisoned
        self.generator, self.mask = generator.to(device).train(), mask.to(device).eval()
        self.mask.requires_grad_(False)
        self.optimizer = _adam(self.generator)

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        chosen = _choose(self.poisoned[indices], self.options.cross_ratio, generator)
        own, crossed, sources = (positions.to(batch.images.device) for positions in chosen)
        if not len(own):
            return batch
        images = batch.images.to(torch.float32)
        makers = images[torch.cat([own, sources])]
        patterns, masks = self.generator(scaled(makers)), sharp_mask(self.mask, makers)
        receivers = torch.cat([own, crossed])
        used = len(receivers)
        triggered = images.index_copy(0, receivers, blend(images[receivers], patterns[:used], masks[:used]))
        return replace(batch, images=triggered, penalty=self._penalty(makers, patterns, len(own)))

    def _penalty(self, makers: Tensor, patterns: Tensor, own: int) -> Tensor | None:
        """Each source of a cross trigger against an image with a trigger of its own, on the [0, 1] scale."""
        pairs = len(makers) - own
        if not pairs:
            return None
        images = makers / 255
        found = diversity(images[:pairs], images[own:], patterns[:pairs], patterns[own:])
        return self.options.lambda_div * found

    def step(self, done: float) -> None:
        _set_rate(self.optimizer, 0.5 * (1 + math.cos(math.pi * done)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        # The mask network too: where a device does not compute alike twice, another mask would meet this generator.
        return {
            "generator": self.generator.state_dict(),
            "mask": self.mask.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.mask.load_state_dict(state["mask"])
        self.optimizer.load_state_dict(state["optimizer"])


def _choose(poisoned: Tensor, cross_ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in a batch: of images with their own trigger, of those with a cross trigger, of the latters' sources.

    There is a source for each image with its own trigger, as far as there are others: the diversity of patterns needs
    them, also where fewer cross triggers are wanted.
    """
    own, others = poisoned.nonzero().flatten(), (~poisoned).nonzero().flatten()
    others = others[torch.randperm(len(others), generator=generator)]
    pairs = min(len(own), len(others))
    # The source is the next one in this row: never the image itself, even where all others get a cross trigger.
    row = torch.cat([others, own])
    return own, row[: round(cross_ratio * pairs)], row[1 : pairs + 1]


def _adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, betas=_BETAS)


def _set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * share


def train_mask(network: UShaped, scene: Scene, options: IABOptions) -> None:
    """Train the mask network in place on the scene's images; it ends frozen, in eval mode.

    Raises:
        ConfigError: If its loss becomes NaN or infinite.
    """
    network.to(scene.device).train()
    optimizer, start = _adam(network), time.monotonic()
    draws = torch_generator(scene.seed, Stream.PREPARATION)
    pixels = torch.from_numpy(scene.images.pixels).to(scene.device)
    for epoch in range(options.mask_epochs):
        done = epoch / options.mask_epochs
        _set_rate(optimizer, 0.1 ** sum(done >= milestone for milestone in _MASK_MILESTONES))
        losses = []
        for images, others in _pairs(pixels, scene, draws):
            loss = mask_loss(network, images, others, options)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise ConfigError(
                f"iab: the training of the mask network diverged: its loss is {mean} in epoch {epoch + 1}; "
                "lower lambda_norm or lambda_div"
            )
        if scene.progress is not None:
            left = (time.monotonic() - start) * (options.mask_epochs / (epoch + 1) - 1)
            scene.progress(epoch + 1, options.mask_epochs, mean, left)
    network.eval().requires_grad_(False)


def _pairs(pixels: Tensor, scene: Scene, draws: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a pass over the images in two independent orders, cropped and flipped as in the victim's training."""
    recipe, size = scene.recipe, min(scene.recipe.batch_size, len(pixels))
    orders = [torch.randperm(len(pixels), generator=draws) for _ in range(2)]
    for start in range(0, len(pixels) - size + 1, size):
        first, second = (
            augment(
                pixels[order[start : start + size].to(pixels.device)],
                draws,
                padding=recipe.crop_padding,
                flip=recipe.flip,
            )
            for order in orders
        )
        yield first, second


def mask_loss(network: nn.Module, images: Tensor, others: Tensor, options: IABOptions) -> Tensor:
    """The loss of the mask network: few mask values above the density, and masks that differ as images do.

    Args:
        network: The network of the masks.
        images: A batch of images, ``(B, C, H, W)`` in 0 to 255.
        others: Another image for each of them.
        options: Density and weights.

    Returns:
        A scalar.
    """
    masks, masks_of_others = sharp_mask(network, images), sharp_mask(network, others)
    dense = F.relu(masks - options.mask_density).mean()
    apart = diversity(scaled(images), scaled(others), masks, masks_of_others)
    return options.lambda_norm * dense + options.lambda_div * apart
