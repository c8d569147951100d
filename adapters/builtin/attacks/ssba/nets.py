"""The two networks of SSBA, one that hides bits in an image and one that reads them back, and how they learn it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError
from clp_plugin.networks.devices import seeded

from ...randomness import Stream, torch_generator, torch_seed

if TYPE_CHECKING:
    from ...training.train import Progress

# BackdoorBench's side of the plane on which the secret is laid out, for images of 32x32 and of 64x64.
PLANE = 16
_HALVINGS = 3
# BackdoorBench's: the image counts from when the bits are read this well, and fully 3,000 of its 15,600 steps later.
_DECODED_SHARE, _RAMP_SHARE = 0.9, 0.2
_REPORT_SECONDS = 0.5


class Encoder(nn.Module):
    """U-shaped: the secret, spread over a plane, goes in beside the image, and a residual for the image comes out.

    No BatchNorm: the residual of an image must not depend on which other images are poisoned with it.

    Args:
        channels: Channels of the images.
        bits: Length of the secret.
        width: Channels at full resolution; twice and four times as many below.
    """

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        self.channels, self.bits, self.width = channels, bits, width
        widths = _widths(width)
        self.plane = nn.Linear(bits, channels * PLANE * PLANE)
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(upper, lower, 3, stride=2, padding=1) for upper, lower in pairs)
        self.up = nn.ModuleList(nn.Conv2d(lower + upper, upper, 3, padding=1) for upper, lower in reversed(pairs))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor, secrets: Tensor) -> Tensor:
        """Residuals ``(N, C, H, W)``, unbounded, for images ``(N, C, H, W)`` in [0, 1] and bits ``(N, bits)``, 0 or 1."""
        plane = F.relu(self.plane(secrets - 0.5)).view(-1, self.channels, PLANE, PLANE)
        features = F.relu(self.first(torch.cat((images - 0.5, F.interpolate(plane, size=images.shape[2:])), 1)))
        kept = []
        for layer in self.down:
            kept.append(features)
            features = F.relu(layer(features))
        for layer in self.up:
            upper = kept.pop()
            # Nearest neighbours: their gradient is the same in every run on a GPU, that of bilinear ones is not.
            features = F.relu(layer(torch.cat((F.interpolate(features, size=upper.shape[2:]), upper), 1)))
        residual: Tensor = self.last(features)
        return residual


class Decoder(nn.Module):
    """Reads the bits of an image; needed to train the encoder and for nothing else.

    Args:
        input_shape: ``(C, H, W)`` of the images.
        bits: Length of the secret.
        width: Channels after the first layer.
    """

    def __init__(self, input_shape: tuple[int, int, int], bits: int, width: int) -> None:
        super().__init__()
        before, height, width_in_pixels = input_shape
        layers: list[nn.Module] = []
        for after in _widths(width)[1:]:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            height, width_in_pixels, before = -(-height // 2), -(-width_in_pixels // 2), after
        # Not pooled: where a pattern lies tells which bit it is.
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width_in_pixels, bits))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, bits)``, above 0 for a 1, of images ``(N, C, H, W)`` in [0, 1]."""
        logits: Tensor = self.layers(images - 0.5)
        return logits


def _widths(width: int) -> list[int]:
    return [width * min(2**depth, 4) for depth in range(_HALVINGS + 1)]


def is_whole(value: object, least: int, most: float = math.inf) -> TypeGuard[int]:
    """Whether a value is a whole number in a range, both ends included; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True)
class HidingRecipe:
    """How the networks are trained: Adam at a constant rate.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step; the last, smaller batch of a pass is left out.
        lr: Learning rate of Adam.
        image_weight: Weight of the mean squared residual, on the [0, 1] scale, against the bits' cross-entropy.
        noise: Standard deviation, in levels of 0 to 255, of what is added to each pixel before the decoder sees it.

    Source:
        The defaults are BackdoorBench's. The noise is one of StegaStamp's disturbances, there up to 5 levels.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-4
    image_weight: float = 10.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        limits = (
            ("epochs", is_whole(self.epochs, 1), "a whole number from 1 on"),
            ("batch_size", is_whole(self.batch_size, 2), "a whole number from 2 on"),
            ("lr", 0 < self.lr < math.inf, "above 0"),
            ("image_weight", 0 <= self.image_weight < math.inf, "a number from 0 on"),
            ("noise", 0 <= self.noise < math.inf, "a number of levels from 0 on"),
        )
        for name, fine, expected in limits:
            if not fine:
                raise ConfigError(f"ssba: expected {name} to be {expected}, found {getattr(self, name)!r}")


def learn_to_hide(
    encoder: Encoder,
    pixels: NDArray[np.uint8],
    recipe: HidingRecipe,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Decoder:
    """Train an encoder in place, together with a decoder, on random secrets; both end on the CPU in eval mode.

    The loss is the cross-entropy of the decoded bits, plus the mean squared residual with a weight that is 0 until a
    batch is decoded with 90 % of its bits right, and then rises linearly over a fifth of the training.

    Args:
        encoder: The encoder with its initial weights.
        pixels: Images to hide in, ``(N, C, H, W)`` uint8.
        recipe: The schedule of the training.
        seed: Seed of the decoder's weights, the order of the images and the secrets.
        device: The device to train on.
        progress: Called while training.

    Returns:
        The decoder.

    Raises:
        ConfigError: If there are fewer than 2 images, or the weights end as NaN or infinity.

    Source:
        BackdoorBench's recipe, which waits another 1,000 steps before the rise.
    """
    if len(pixels) < 2:
        raise ConfigError(f"ssba: expected at least 2 training images, found {len(pixels)}; give more with n_train")
    training = _HidingTraining(encoder, pixels, recipe, seed, torch.device(device))
    start = last = time.monotonic()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while training.done < training.steps:
            loss = training.step()
            now = time.monotonic()
            if progress is not None and (now - last >= _REPORT_SECONDS or training.done == training.steps):
                share, last = training.done / training.steps, now
                progress(share * recipe.epochs, recipe.epochs, float(loss), (now - start) * (1 / share - 1))
    training.check()
    encoder.cpu().eval()
    return training.decoder.cpu().eval()


class _HidingTraining:
    """The state of the training: both networks on the device, and how many of the ``steps`` are done."""

    def __init__(
        self, encoder: Encoder, pixels: NDArray[np.uint8], recipe: HidingRecipe, seed: int, device: torch.device
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        channels, height, width = pixels.shape[1:]
        with seeded(torch_seed(seed, Stream.PREPARATION)):
            decoder = Decoder((channels, height, width), encoder.bits, encoder.width)
        self.encoder, self.decoder = encoder.to(device).train(), decoder.to(device).train()
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
        self.optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=recipe.lr)
        self.batch_size = min(recipe.batch_size, len(pixels))
        self.steps_a_pass = len(pixels) // self.batch_size
        self.steps = recipe.epochs * self.steps_a_pass
        self.done = 0
        self.ramp_start: int | None = None

    def step(self) -> Tensor:
        """Train on one batch; return its loss."""
        epoch, batch = divmod(self.done, self.steps_a_pass)
        if batch == 0:
            # Numpy seeds (seed, stream, 0) as (seed, stream), which the decoder's weights come from.
            self.generator = torch_generator(self.seed, Stream.PREPARATION, epoch + 1)
            self.order = torch.randperm(len(self.pixels), generator=self.generator)
        chosen = self.order[batch * self.batch_size : (batch + 1) * self.batch_size]
        images = self.pixels[chosen.to(self.device)].float().div(255)
        secrets = torch.randint(0, 2, (len(images), self.encoder.bits), generator=self.generator).float()
        loss = self._loss(images, secrets.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.detach()

    def _loss(self, images: Tensor, secrets: Tensor) -> Tensor:
        residual: Tensor = self.encoder(images, secrets)
        logits = self.decoder(self.disturbed((images + residual).clamp(0, 1)))
        if self.ramp_start is None and float(((logits > 0) == (secrets > 0.5)).float().mean()) > _DECODED_SHARE:
            self.ramp_start = self.done
        weight = 0.0 if self.ramp_start is None else self._image_weight(self.done - self.ramp_start)
        return F.binary_cross_entropy_with_logits(logits, secrets) + weight * residual.square().mean()

    def disturbed(self, images: Tensor) -> Tensor:
        """Images in [0, 1] with the recipe's noise; not clamped."""
        if not self.recipe.noise:
            return images
        drawn = torch.randn(images.shape, generator=self.generator).to(self.device)
        return images + self.recipe.noise / 255 * drawn

    def _image_weight(self, steps: int) -> float:
        return self.recipe.image_weight * min(1.0, steps / (_RAMP_SHARE * self.steps))

    def check(self) -> None:
        """Refuse a training that diverged: NaN and infinity, once there, stay in the weights."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.encoder.parameters()):
            raise ConfigError(f"ssba: the encoder's training diverged; lower its lr (found {self.recipe.lr})")
