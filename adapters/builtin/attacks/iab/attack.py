"""Input-aware dynamic backdoor: a network makes another trigger for every image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.networks.devices import seeded

from ...randomness import Stream, torch_seed
from ...scene import Scene
from ..base import Attack, Pixels
from .nets import MULTIPLE, UShaped, blend, scaled, sharp_mask
from .training import IABOptions, InputAwareHook, train_mask

_CHUNK = 256


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
        options: The options, as :class:`IABOptions` explains them.
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

    needs_victim: ClassVar[bool] = True

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
            seed: Seed of the networks' weights.
            width: Channels of both networks at full size; the paper's is 32.
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
            train_mask(prepared.mask, scene, self.options)
        return prepared

    def hook(self, scene: Scene) -> InputAwareHook:
        """Trains the generator of this object, in place, with the classifier."""
        poisoned = torch.zeros(len(scene.images), dtype=torch.bool)
        poisoned[torch.from_numpy(scene.poisoned)] = True
        return InputAwareHook(self.generator, self.mask, self.options, poisoned, torch.device(scene.device))

    def poison(self, pixels: Pixels) -> Pixels:
        if pixels.shape[1:] != self.input_shape:
            raise ConfigError(f"iab: the generator is for {self.input_shape}, the images are {pixels.shape[1:]}")
        poisoned = np.empty_like(pixels)
        # On the CPU wherever they were trained: a record must poison alike where there is no accelerator.
        generator, mask = (copy.deepcopy(network).to("cpu").eval() for network in (self.generator, self.mask))
        with torch.inference_mode():
            for start in range(0, len(pixels), _CHUNK):
                part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _CHUNK])).to(torch.float32)
                triggered = blend(part, generator(scaled(part)), sharp_mask(mask, part))
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


def _untrained(channels: int, out_channels: int, width: int, seed: int) -> UShaped:
    with seeded(seed):
        return UShaped(channels, out_channels, width)
