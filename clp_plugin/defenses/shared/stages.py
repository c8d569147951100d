"""The stages of any network by the sizes of its feature maps, and what their maps attend to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.networks.hooks import hooked
from clp_plugin.networks.wrappers import unwrap

_EPS = 1e-6


@dataclass(frozen=True)
class Stage:
    """The last feature maps of one size.

    Attributes:
        module: Name, in the bare network, of the module that puts them out.
        size: Height and width, which tells the calls of a module apart that is called at several sizes.
    """

    module: str
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.module} {self.size[0]}x{self.size[1]}"


def stages(model: nn.Module, image: Tensor) -> list[Stage]:
    """The stages of a network in the order in which they end, found by watching one forward pass.

    A stage's maps are the last of their size, among the outermost modules that put out such: those of ``layer2`` rather than
    those of ``layer2.1``, which it contains, and of ``layer3.0.bn1``, which comes later but belongs to the next stage. Left
    out are maps of a single pixel, on which normalized attention is always 1; maps that no trainable weight has shaped; maps
    larger than a stage's before them, which repeat it (a small map that is stretched for the classifier); and outputs of
    other proportions than the image, which are no maps (tokens with their channels last).

    Args:
        model: A model in eval mode; it is unchanged afterwards.
        image: One image, ``(1, C, H, W)``, on the model's device.

    Returns:
        The stages from low (large maps) to high; empty if there are none.
    """
    last: dict[tuple[int, int], str] = {}

    def note(name: str, maps: Tensor) -> None:
        size = (maps.shape[2], maps.shape[3])
        if maps.requires_grad and (size not in last or name.count(".") <= last[size].count(".")):
            last.pop(size, None)
            last[size] = name

    with torch.enable_grad(), _watching(model, [name for name, _ in unwrap(model).named_modules()], note):
        model(image)
    found: list[Stage] = []
    for (height, width), name in last.items():
        is_map = abs(height * image.shape[3] - width * image.shape[2]) <= max(image.shape[2:])
        repeats = bool(found) and height * width > found[-1].size[0] * found[-1].size[1]
        if height * width > 1 and is_map and not repeats:
            found.append(Stage(name, (height, width)))
    return found


@contextlib.contextmanager
def maps_of(model: nn.Module, chosen: Sequence[Stage]) -> Iterator[dict[Stage, Tensor]]:
    """Inside, each forward pass puts the maps of these stages, ``(B, C, H, W)``, into the dictionary."""
    maps: dict[Stage, Tensor] = {}
    wanted = set(chosen)

    def keep(name: str, output: Tensor) -> None:
        stage = Stage(name, (output.shape[2], output.shape[3]))
        if stage in wanted:
            maps[stage] = output

    with _watching(model, [stage.module for stage in chosen], keep):
        yield maps


def attention(maps: Tensor) -> Tensor:
    """How active a stage is at each position of the image.

    Args:
        maps: ``(B, C, H, W)``, any floating type.

    Returns:
        ``(B, H * W)`` float32: sum over channels of the squares, divided by its L2 norm; 0 where all maps are 0.

    Source:
        NAD (ICLR 2021), section 3: the attention of sums of powers, with p = 2.
    """
    return F.normalize(maps.float().square().sum(1).flatten(1), eps=_EPS)


def _watching(
    model: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]
) -> contextlib.AbstractContextManager[None]:
    """Hooks that show every 4-D output of these modules of the bare network; none stays."""

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                see(name, output)

        return hook

    network = unwrap(model)
    return hooked(network.get_submodule(name).register_forward_hook(hook_of(name)) for name in dict.fromkeys(names))
