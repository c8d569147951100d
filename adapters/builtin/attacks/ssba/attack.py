"""SSBA: a hidden message, drawn into each image by a network that was trained to hide messages."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.networks.devices import seeded

from ...randomness import Stream, numpy_generator, torch_seed
from ..base import Attack, Pixels
from .nets import Encoder, HidingRecipe, is_whole, learn_to_hide

if TYPE_CHECKING:
    from ...scene import Scene

_CHUNK = 64
_PREFIX = "encoder."
_LARGEST_OPTION = 1024


@dataclass(frozen=True, eq=False)
class SSBA(Attack):
    """Each image plus the residual in which a trained encoder hides one common secret in that very image.

    Until :meth:`prepare` the encoder is untrained: it draws a random residual, which is no attack of the paper.

    :meth:`poison` computes in float32 on the CPU: another number of threads may move a pixel by one level.

    Attributes:
        secret: ``(bits,)`` uint8, 0 or 1; the same for all images.
        encoder: The network that makes the residual, on the CPU, in eval mode.
        input_shape: ``(C, H, W)`` of the images.
        recipe: How :meth:`prepare` trains; not stored with the trigger, which is trained by then.

    Source:
        Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021 (arXiv:2012.03816), after
        Tancik et al., "StegaStamp", CVPR 2020 (arXiv:1904.05343). Of the public codes BackdoorBench's schedule is
        followed (see :func:`~clp_plugin.adapters.builtin.attacks.ssba.nets.learn_to_hide`), and BackdoorBox's
        20 bits and residual that is added and clamped.

    Deviations:
        No LPIPS term, which would need one more package and a download of weights; no critic; no error-correcting code
        around the secret, since nobody decodes it once the victim is trained. The encoder sees training images only:
        BackdoorBox's example trains it on test images too. The networks are smaller than StegaStamp's.
    """

    secret: NDArray[np.uint8]
    encoder: Encoder
    input_shape: tuple[int, int, int]
    recipe: HidingRecipe = field(default_factory=HidingRecipe)

    @classmethod
    def create(
        cls,
        input_shape: tuple[int, int, int],
        *,
        seed: int,
        bits: int = 20,
        width: int = 32,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float = 1e-4,
        image_weight: float = 10.0,
        noise: float = 0.0,
    ) -> SSBA:
        """Draw the secret and an untrained encoder.

        Args:
            input_shape: ``(C, H, W)`` of the images.
            seed: Seed of the secret and the initial weights.
            bits: Length of the secret, from 1 to 1024.
            width: Channels of the encoder at full resolution, from 1 to 1024.
            epochs: Passes of :meth:`prepare` over the training images, at least 1.
            batch_size: Images a step there, at least 2; the last, smaller batch of a pass is left out.
            lr: Learning rate of Adam there, above 0.
            image_weight: Weight of the mean squared residual, on the [0, 1] scale, against the bits' cross-entropy; at
                least 0. The higher, the fainter the trigger and the harder for the victim to learn; far higher, and the
                encoder hides nothing at all.
            noise: Standard deviation, in levels of 0 to 255, of Gaussian noise on what the decoder sees there; at least
                0. The encoder has to write larger against it.

        Raises:
            ConfigError: If an option is outside its range.
        """
        for name, value in (("bits", bits), ("width", width)):
            if not is_whole(value, 1, _LARGEST_OPTION):
                raise ConfigError(
                    f"ssba: expected {name} to be a whole number from 1 to {_LARGEST_OPTION}, found {value!r}"
                )
        recipe = HidingRecipe(epochs, batch_size, lr, image_weight, noise)
        secret = numpy_generator(seed, Stream.TRIGGER).integers(0, 2, size=bits, dtype=np.uint8)
        with seeded(torch_seed(seed, Stream.TRIGGER)):
            encoder = Encoder(input_shape[0], bits, width)
        return cls(secret, encoder.eval(), input_shape, recipe)

    def prepare(self, scene: Scene) -> SSBA:
        """The attack with its encoder trained on the training images; this one stays as it is.

        Raises:
            ConfigError: If the images have another shape or are fewer than 2, or the training diverges.
        """
        self._check_shape(scene.images.pixels)
        encoder = copy.deepcopy(self.encoder)
        learn_to_hide(
            encoder, scene.images.pixels, self.recipe, seed=scene.seed, device=scene.device, progress=scene.progress
        )
        return replace(self, encoder=encoder)

    def poison(self, pixels: Pixels) -> Pixels:
        self._check_shape(pixels)
        poisoned = np.empty_like(pixels)
        secret = torch.from_numpy(self.secret.astype(np.float32))
        with torch.inference_mode():
            # In parts: the encoder's features are many times the size of an image.
            for start in range(0, len(pixels), _CHUNK):
                images = torch.from_numpy(pixels[start : start + _CHUNK].astype(np.float32) / np.float32(255))
                hidden = images + self.encoder(images, secret.expand(len(images), -1))
                levels: Tensor = hidden.clamp(0, 1).mul(255).round()
                poisoned[start : start + _CHUNK] = levels.numpy()
        return poisoned

    def to_json(self) -> dict[str, Any]:
        return {
            "secret": self.secret.tolist(),
            "input_shape": list(self.input_shape),
            "width": self.encoder.width,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {_PREFIX + name: weight.numpy().copy() for name, weight in self.encoder.state_dict().items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SSBA:
        secret, shape, width = data.get("secret"), data.get("input_shape"), data.get("width")
        if not isinstance(secret, list) or not secret or not all(is_whole(bit, 0, 1) for bit in secret):
            raise RecordError(f"ssba trigger: expected a secret of bits 0 and 1, found {secret!r}")
        if not isinstance(shape, list) or len(shape) != 3 or not all(is_whole(side, 1, 2**31) for side in shape):
            raise RecordError(f"ssba trigger: expected an input_shape [C, H, W], found {shape!r}")
        if not is_whole(width, 1, _LARGEST_OPTION):
            raise RecordError(f"ssba trigger: expected a width from 1 to {_LARGEST_OPTION}, found {width!r}")
        channels, height, image_width = shape
        try:
            # On the meta device the network draws no random weights and takes no memory before its weights are checked.
            with torch.device("meta"):
                encoder = Encoder(channels, len(secret), width)
        except RuntimeError as error:
            raise RecordError(f"ssba trigger: expected an input_shape [C, H, W], found {shape!r} ({error})") from error
        encoder.load_state_dict(_weights(encoder, arrays), assign=True)
        return cls(np.asarray(secret, dtype=np.uint8), encoder.eval(), (channels, height, image_width))

    def _check_shape(self, pixels: Pixels) -> None:
        if pixels.shape[1:] != self.input_shape:
            raise ConfigError(f"ssba: the encoder is for images of {self.input_shape}, found {pixels.shape[1:]}")


def _weights(encoder: Encoder, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The encoder's weights among the arrays of a trigger."""
    found = {}
    for name, wanted in encoder.state_dict().items():
        array = arrays.get(_PREFIX + name)
        if array is None or array.shape != tuple(wanted.shape) or array.dtype != np.float32:
            held = "nothing" if array is None else f"{array.shape} {array.dtype}"
            raise RecordError(
                f"ssba trigger: expected the array {_PREFIX + name} of {tuple(wanted.shape)} float32, found {held}; "
                "copy trigger.safetensors again"
            )
        if not np.isfinite(array).all():
            raise RecordError(f"ssba trigger: {_PREFIX + name} holds NaN or infinity; copy trigger.safetensors again")
        found[name] = torch.from_numpy(array.copy())
    return found
