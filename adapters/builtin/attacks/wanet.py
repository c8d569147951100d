"""WaNet: a smooth warp of the whole image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.types import Ints

from ..randomness import Stream, numpy_generator
from ..scene import Scene
from ..training.hooks import Batch, BatchHook
from .base import Attack, Pixels

_CHUNK = 1024
_FIELD = "field"
_CLEAN, _WARPED, _NOISY = 0, 1, 2


@dataclass(frozen=True, eq=False)
class WaNet(Attack):
    """Every image is sampled at the same smoothly displaced points.

    Pixel (row, column) of the result is the image at ``(row, column) + displacement``, bilinear between four pixels.
    Displacements are given in grid coordinates, in which the centres of the outermost pixels lie at -1 and 1:
    ``strength * field / (W, H)``, which is ``strength * field * (W - 1) / (2 W)`` pixels, about a quarter of a pixel on
    average for the default strength.

    The attack takes part in the training, after crop and flip: a fixed set of images with the wanted labels is warped,
    and a further set with true labels is warped by the same field plus fresh noise in every batch, so that the network
    learns this field and not that an image is warped at all. The part of the poisoned training set that a record keeps
    is warped as at test time and shows nothing of the noise.

    Attributes:
        field: ``(H, W, 2)`` float32, horizontal then vertical; control points of mean magnitude 1, interpolated.
        strength: Strength of the warp, at least 0; 0 leaves images as they are.
        noise: Largest noise in units of ``(1/W, 1/H)``, which is half a pixel; at least 0.
        cross_ratio: Images with noise for each poisoned one, at least 0; as many as there are.

    Source:
        Nguyen and Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021 (arXiv:2102.10369).
        Deviations: the two sets of images are drawn once instead of the first images of each shuffled batch; images are
        warped after their augmentation and not before; the horizontal displacement is divided by the width, which
        differs only where images are not square; warped images are rounded to whole values in the training as at test
        time.
    """

    field: NDArray[np.float32]
    strength: float = 0.5
    noise: float = 1.0
    cross_ratio: float = 2.0

    @classmethod
    def create(
        cls,
        input_shape: tuple[int, int, int],
        *,
        seed: int,
        grid_size: int = 4,
        strength: float = 0.5,
        noise: float = 1.0,
        cross_ratio: float = 2.0,
    ) -> WaNet:
        """Draw the field.

        Args:
            input_shape: ``(C, H, W)`` of the images, any size.
            seed: Seed of the field.
            grid_size: Control points a side, at least 2.
            strength: Strength of the warp, at least 0; 0 leaves images as they are.
            noise: Largest noise in half pixels, at least 0. To be raised with the strength: noise that is small beside
                the warp is hard to see, and images with and without it are then taken for each other.
            cross_ratio: Images with noise for each poisoned one, at least 0.

        Raises:
            ConfigError: If an option is outside its range.
        """
        if not isinstance(grid_size, int) or grid_size < 2:
            raise ConfigError(f"wanet: expected a whole grid_size of at least 2, found {grid_size!r}; the paper's is 4")
        for name, value in (("strength", strength), ("noise", noise), ("cross_ratio", cross_ratio)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"wanet: expected a finite {name} of at least 0, found {value}; give another")
        points = numpy_generator(seed, Stream.TRIGGER).uniform(-1, 1, size=(1, 2, grid_size, grid_size))
        points /= np.abs(points).mean()
        smooth = F.interpolate(torch.from_numpy(points), size=input_shape[1:], mode="bicubic", align_corners=True)
        field = smooth[0].permute(1, 2, 0).to(torch.float32).contiguous()
        return cls(field.numpy(), float(strength), float(noise), float(cross_ratio))

    def poison(self, pixels: Pixels) -> Pixels:
        if pixels.shape[2:] != self.field.shape[:2]:
            raise ConfigError(f"wanet: the field is for {self.field.shape[:2]}, the images are {pixels.shape[2:]}")
        grid, poisoned = self.grid(), np.empty_like(pixels)
        # In parts: a float copy of a whole data set is four times its size.
        for start in range(0, len(pixels), _CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _CHUNK]))
            poisoned[start : start + _CHUNK] = _sample(part, grid).numpy()
        return poisoned

    def grid(self) -> Tensor:
        """The place that each pixel is taken from: ``(H, W, 2)`` float32 in [-1, 1], horizontal then vertical."""
        height, width = self.field.shape[:2]
        columns, rows = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
        identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        displacement = self.strength * torch.from_numpy(self.field) / torch.tensor([width, height])
        return (identity + displacement).clamp(-1, 1)

    def hook(self, scene: Scene) -> WarpHook:
        """Warps the poisoned images of each batch, and with noise others; the seed of the scene decides which others."""
        return WarpHook(self.grid().to(scene.device), self.noise, self._roles(scene))

    def _roles(self, scene: Scene) -> Tensor:
        roles = torch.full((len(scene.images),), _CLEAN, dtype=torch.int8)
        roles[torch.from_numpy(scene.poisoned)] = _WARPED
        others: Ints = np.flatnonzero(roles.numpy() == _CLEAN)
        count = min(round(self.cross_ratio * len(scene.poisoned)), len(others))
        noisy = numpy_generator(scene.seed, Stream.PREPARATION).choice(others, count, replace=False)
        roles[torch.from_numpy(noisy)] = _NOISY
        return roles

    def to_json(self) -> dict[str, Any]:
        return {"strength": self.strength, "noise": self.noise, "cross_ratio": self.cross_ratio}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {_FIELD: self.field}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> WaNet:
        numbers, field = {name: data.get(name) for name in ("strength", "noise", "cross_ratio")}, arrays.get(_FIELD)
        for name, value in numbers.items():
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise RecordError(
                    f"wanet trigger: expected a finite {name} of at least 0, found {value!r}; attack again"
                )
        whole = isinstance(field, np.ndarray) and field.dtype == np.float32 and field.ndim == 3 and field.shape[2] == 2
        if field is None or not whole or not np.isfinite(field).all():
            found = "none" if field is None else f"{np.shape(field)} {getattr(field, 'dtype', type(field).__name__)}"
            raise RecordError(
                f"wanet trigger: expected the array {_FIELD!r}, finite (H, W, 2) float32, found {found}; attack again"
            )
        return cls(field, **{name: float(data[name]) for name in numbers})


class WarpHook(BatchHook):
    """Warps the poisoned images of a training batch; others by the same field with fresh noise, their labels kept.

    It has no state: the noise comes from the generator of the training.

    Attributes:
        grid: ``(H, W, 2)``, see :meth:`WaNet.grid`, on the training device.
        noise: Largest noise, as of :class:`WaNet`.
        roles: ``(N,)`` int8 on the CPU, the role of each training image: 0 clean, 1 warped, 2 warped with noise.
    """

    def __init__(self, grid: Tensor, noise: float, roles: Tensor) -> None:
        self.grid, self.noise, self.roles = grid, noise, roles

    def __call__(self, batch: Batch, indices: Tensor, generator: torch.Generator) -> Batch:
        roles = self.roles[indices]
        warped, noisy = ((roles == role).nonzero().flatten() for role in (_WARPED, _NOISY))
        images = batch.images
        if len(warped):
            images = _with_members_warped(images, warped, self.grid)
        if len(noisy):
            images = _with_members_warped(images, noisy, self._noisy_grids(len(noisy), generator))
        return replace(batch, images=images)

    def _noisy_grids(self, count: int, generator: torch.Generator) -> Tensor:
        """``(count, H, W, 2)``: each point of each image moved on its own."""
        height, width = self.grid.shape[:2]
        noise = self.noise * (2 * torch.rand((count, height, width, 2), generator=generator) - 1)
        return (self.grid + (noise / torch.tensor([width, height])).to(self.grid.device)).clamp(-1, 1)


def _with_members_warped(images: Tensor, members: Tensor, grid: Tensor) -> Tensor:
    on_device = members.to(images.device)
    return images.index_copy(0, on_device, _sample(images[on_device], grid))


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """``(N, C, H, W)`` uint8 images sampled at ``(H, W, 2)`` or ``(N, H, W, 2)`` points, rounded to uint8."""
    points = grid.expand(len(images), *grid.shape[-3:])
    # "border" instead of zeros: a point at an edge must not be mixed with black because of the last bit of a float.
    found = F.grid_sample(images.to(torch.float32), points, mode="bilinear", padding_mode="border", align_corners=True)
    return found.round().to(torch.uint8)
