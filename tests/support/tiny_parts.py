"""What the tiny networks are made of, and the cases that they are registered as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Layers = dict[str, tuple[str, tuple[str, ...]]]  # name -> (kind, convolutions), in the order of execution


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    layers: Layers
    shape: tuple[int, ...] = (3, 8, 8)
    unscored: frozenset[str] = frozenset()


CASES: dict[str, Case] = {}


def case(
    layers: Layers, *, shape: tuple[int, ...] = (3, 8, 8), unscored: str = ""
) -> Callable[..., Callable[[], nn.Module]]:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[build.__name__] = Case(build.__name__, build, layers, shape, frozenset(unscored.split()))
        return build

    return register


class Wired(nn.Module):
    """Modules by keyword, and a function of (self, x) as forward."""

    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self._wiring = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> object:
        return self._wiring(self, x)


def classify(net: nn.Module, maps: Tensor) -> Tensor:
    return net.fc(maps.flatten(2).mean(2))


def conv(i: int, o: int, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=options.pop("padding", k // 2), **options)


def fused(**pairs: str) -> Layers:
    return {norm: ("fused", tuple(convs.split())) for norm, convs in pairs.items()}


HEAD: Layers = {"fc": ("head", ("fc",))}


def chain(norm: Callable[[int], nn.Module], **options: object) -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.bn2(n.conv2(F.relu(n.bn1(n.conv1(x)))))))

    first, second = conv(3, 4), conv(4, 6, **options)
    return Wired(forward, conv1=first, bn1=norm(4), conv2=second, bn2=norm(6), fc=nn.Linear(6, 3))


CHAIN = fused(bn1="conv1", bn2="conv2") | HEAD


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine parameters of both signs in every norm: fresh ones hide a wrong pairing."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            k = module.running_var.shape
            module.running_var.copy_(torch.rand(k, generator=g) + 0.5)
            module.running_mean.copy_(torch.randn(k, generator=g) * 0.1)
            if module.weight is not None:
                sign = torch.randint(0, 2, k, generator=g) * 2.0 - 1
                module.weight.data.copy_(sign * (torch.rand(k, generator=g) + 0.5))
                module.bias.data.copy_(torch.randn(k, generator=g) * 0.2 + 0.3)
    return model
