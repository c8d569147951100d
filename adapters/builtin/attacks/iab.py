"""Input-aware dynamic backdoor: a network makes another trigger for every image."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.augmentation import augment
from clp_plugin.errors import ConfigError, RecordError

from .._random import Stream, torch_generator, torch_seed
from ..hooks import Batch, BatchHook
from ..scene import Scene
from ._iab_nets import MULTIPLE, UShaped, diversity, scaled, sharp_mask
from .base import Attack, Pixels

_CHUNK = 256
_LEARNING_RATE, _BETAS = 0.01, (0.5, 0.9)
# The mask network's learning rate falls to a tenth after 10 and after 20 of the paper's 25 epochs.
_MASK_MILESTONES = (10 / 25, 20 / 25)


@dataclass(frozen=True)
class IABOptions:
    """What decides the networks and how they are trained.

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


@dataclass(frozen=True, eq=False)
class IAB(Attack):
    """An image x becomes x + (pattern(x) - x) * mask(x).

    :meth:`prepare` trains the mask network. :meth:`hook` then trains the generator of patterns, which belongs to this
    object, together with the classifier: in each batch, after crop and flip, the images at poisoned positions get their
    own trigger, and as many others (``cross_ratio`` 1), labels kept, a cross trigger: pattern and mask of another image
    of the batch. So the classifier learns that a trigger works on its own image only.

    Triggered images are not rounded in the training, where gradients pass through them; :meth:`poison` rounds to uint8
    and has both networks in eval mode on the CPU. The part of the poisoned training set that a record keeps is poisoned
    so by the generator as it ended, and shows no cross triggers.

    Attributes:
        input_shape: ``(C, H, W)`` of the images.
        options: See :class:`IABOptions`.
        generator: Images, as ``scaled`` makes them, to patterns ``(B, C, H, W)`` in [0, 1].
        mask: The same to what :func:`sharp_mask` sharpens, ``(B, 1, H, W)`` in [0, 1].

    Source:
        Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020 (arXiv:2010.08138).
        Deviations: the poisoned images are a fixed set instead of the first images of each shuffled batch, and cross
        triggers come from the same batch instead of a second loader; BatchNorm in the generator sees the images of both
        at once; the networks standardise images by fixed numbers; the mask network's learning rate falls at the paper's
        shares of its training instead of its epochs, the generator's along a half cosine, as the classifier's, instead
        of in steps. Where public codes differ from the paper, the paper is followed: the generator's gradient is
        cleared after each step, and its tanh is applied once.
    """

    input_shape: tuple[int, int, int]
    options: IABOptions
    generator: UShaped
    mask: UShaped

    @classmethod
    def create(
        cls,
        input_shape: tuple[int, int, int],
        *,
        seed: int,
        width: int = 32,
        mask_epochs: int = 25,
        mask_density: float = 0.032,
        lambda_norm: float = 100.0,
        lambda_div: float = 1.0,
        cross_ratio: float = 1.0,
    ) -> IAB:
        """Make both networks, untrained.

        Args:
            input_shape: ``(C, H, W)`` of the images; H and W multiples of 8.
            seed: Of their weights.
            width: See :class:`IABOptions`, as for all others.
            mask_epochs: Passes over the images that train the mask network.
            mask_density: Mask values up to this one cost nothing.
            lambda_norm: Weight of mask values above it.
            lambda_div: Weight of diversity. Only its ratio to ``lambda_norm`` decides the masks, so that lowering both
                alike leaves more of the generator's training to the classifier's loss.
            cross_ratio: Images with a cross trigger for each with its own. Fewer make the attack quicker to learn and
                its triggers less bound to their images.

        Raises:
            ConfigError: If an option is outside its range, or the images cannot be halved three times.
        """
        options = IABOptions(width, mask_epochs, mask_density, lambda_norm, lambda_div, cross_ratio)
        channels, height, columns = input_shape
        if min(height, columns) < MULTIPLE or height % MULTIPLE or columns % MULTIPLE:
            raise ConfigError(
                f"iab: expected images whose height and width are multiples of {MULTIPLE}, found {height}x{columns}; "
                "choose another image size"
            )
        generator = _untrained(channels, channels, width, torch_seed(seed, Stream.TRIGGER, 0))
        mask = _untrained(channels, 1, width, torch_seed(seed, Stream.TRIGGER, 1))
        return cls(input_shape, options, generator, mask)

    def prepare(self, scene: Scene) -> IAB:
        """An attack of its own whose mask network is trained on the scene's images.

        Raises:
            ConfigError: If that training diverges.
        """
        prepared = replace(self, generator=copy.deepcopy(self.generator), mask=copy.deepcopy(self.mask))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            _train_mask(prepared.mask, scene, self.options)
        return prepared

    def hook(self, scene: Scene) -> InputAwareHook:
        """Trains the generator of this object, in place, with the classifier."""
        poisoned = torch.zeros(len(scene.images), dtype=torch.bool)
        poisoned[torch.from_numpy(scene.poisoned)] = True
        return InputAwareHook(self, poisoned, torch.device(scene.device))

    def poison(self, pixels: Pixels) -> Pixels:
        if pixels.shape[1:] != self.input_shape:
            raise ConfigError(f"iab: the generator is for {self.input_shape}, the images are {pixels.shape[1:]}")
        poisoned = np.empty_like(pixels)
        # On the CPU wherever they were trained: a record must poison alike where there is no accelerator.
        generator, mask = (copy.deepcopy(network).to("cpu").eval() for network in (self.generator, self.mask))
        with torch.inference_mode():
            for start in range(0, len(pixels), _CHUNK):
                part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _CHUNK])).to(torch.float32)
                triggered = _blend(part, generator(scaled(part)), sharp_mask(mask, part))
                poisoned[start : start + _CHUNK] = triggered.round().to(torch.uint8).numpy()
        return poisoned

    def to_json(self) -> dict[str, Any]:
        return {"input_shape": list(self.input_shape), **asdict(self.options)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: tensor.cpu().numpy().copy() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and running statistics of both networks; BatchNorm's count of batches decides nothing here."""
        networks = (("generator", self.generator), ("mask", self.mask))
        return {
            f"{prefix}.{name}": tensor.detach()
            for prefix, network in networks
            for name, tensor in network.state_dict().items()
            if tensor.is_floating_point()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> IAB:
        shape = data.get("input_shape")
        sides = list(shape) if isinstance(shape, (list, tuple)) else []
        if len(sides) != 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise RecordError(f"iab trigger: expected an input_shape like [3, 32, 32], found {shape!r}; attack again")
        try:
            options = {option.name: data[option.name] for option in fields(IABOptions)}
            attack = cls.create((sides[0], sides[1], sides[2]), seed=0, **options)
        except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RecordError(f"iab trigger: its options are damaged or missing ({error}); attack again") from error
        attack._load(arrays)
        return attack

    def _load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, tensor in self._tensors().items():
            found = arrays.get(name)
            fits = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == tuple(tensor.shape)
            if found is None or not fits or not np.isfinite(found).all():
                told = "none" if found is None else f"{np.shape(found)} {getattr(found, 'dtype', type(found).__name__)}"
                raise RecordError(
                    f"iab trigger: expected the array {name!r}, finite {tuple(tensor.shape)} float32, found {told}; "
                    "attack again"
                )
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(found)))


class InputAwareHook(BatchHook):
    """Puts triggers and cross triggers on the images of a training batch, and trains the generator.

    Attributes:
        attack: Whose generator is trained.
        poisoned: ``(N,)`` bool on the CPU, of each training image.
        optimizer: Of the generator.
    """

    def __init__(self, attack: IAB, poisoned: Tensor, device: torch.device) -> None:
        self.attack, self.poisoned = attack, poisoned
        self.generator, self.mask = attack.generator.to(device).train(), attack.mask.to(device).eval()
        self.mask.requires_grad_(False)
        self.optimizer = _adam(self.generator)

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        chosen = _choose(self.poisoned[indices], self.attack.options.cross_ratio, generator)
        own, crossed, sources = (positions.to(batch.images.device) for positions in chosen)
        if not len(own):
            return batch
        images = batch.images.to(torch.float32)
        makers = images[torch.cat([own, sources])]
        patterns, masks = self.generator(scaled(makers)), sharp_mask(self.mask, makers)
        receivers = torch.cat([own, crossed])
        used = len(receivers)
        triggered = images.index_copy(0, receivers, _blend(images[receivers], patterns[:used], masks[:used]))
        return replace(batch, images=triggered, penalty=self._penalty(makers, patterns, len(own)))

    def _penalty(self, makers: Tensor, patterns: Tensor, own: int) -> Tensor | None:
        """Each source of a cross trigger against an image with a trigger of its own, on the [0, 1] scale."""
        pairs = len(makers) - own
        if not pairs:
            return None
        images = makers / 255
        found = diversity(images[:pairs], images[own:], patterns[:pairs], patterns[own:])
        return self.attack.options.lambda_div * found

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


def _blend(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """Images in 0 to 255 with patterns in [0, 1] where the masks are 1."""
    return images + (255 * patterns - images) * masks


def _untrained(channels: int, out_channels: int, width: int, seed: int) -> UShaped:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs of the caller.
        torch.default_generator.manual_seed(seed)
        return UShaped(channels, out_channels, width)


def _adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, betas=_BETAS)


def _set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * share


def _train_mask(network: UShaped, scene: Scene, options: IABOptions) -> None:
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
    """One pass over the images in two independent orders, cropped and flipped as in the victim's training."""
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
    """What the mask network is trained on: few mask values above the density, and masks that differ as images do.

    Args:
        network: Of the masks.
        images: ``(B, C, H, W)`` in 0 to 255.
        others: Another image for each.
        options: Density and weights.

    Returns:
        A scalar.
    """
    masks, masks_of_others = sharp_mask(network, images), sharp_mask(network, others)
    dense = F.relu(masks - options.mask_density).mean()
    apart = diversity(scaled(images), scaled(others), masks, masks_of_others)
    return options.lambda_norm * dense + options.lambda_div * apart
