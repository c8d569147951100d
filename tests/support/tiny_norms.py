"""Norms that are no BatchNorm, and operations that are no layer."""

from __future__ import annotations

import torch
from tiny_parts import HEAD, Wired, case, chain, classify, conv, fused
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import disable_fake_quant, disable_observer, get_default_qat_qconfig
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import DeformConv2d


def _normalized(norm: nn.Module) -> nn.Module:
    net = chain(nn.BatchNorm2d)
    net.bn2 = norm
    return net


@case(fused(bn1="conv1") | HEAD, unscored="conv2")
def instance_norm() -> nn.Module:
    return _normalized(nn.InstanceNorm2d(6, affine=True))


@case(fused(bn1="conv1") | HEAD, unscored="conv2")
def group_norm() -> nn.Module:
    return _normalized(nn.GroupNorm(2, 6))


@case(fused(bn1="conv1") | {"conv2": ("conv", ("conv2",))} | HEAD)
def layer_norm() -> nn.Module:
    """As in ConvNeXt, over the channels of each position."""
    channels_last = nn.LayerNorm(6)
    return _normalized(Wired(lambda n, x: n.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=channels_last))


@case(fused(bn1="conv1", bn2="conv2") | HEAD, unscored="conv2")
def half_instance_norm() -> nn.Module:
    """As IBN-Net: half of the channels are normalized image by image, half by a BatchNorm."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = n.conv2(F.relu(n.bn1(n.conv1(x))))
        return classify(n, F.relu(torch.cat([n.norm(x[:, :3]), n.bn2(x[:, 3:])], 1)))

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(4, 6), norm=nn.InstanceNorm2d(3),
        bn2=nn.BatchNorm2d(3), fc=nn.Linear(6, 3),
    )  # fmt: skip


class OwnConv(nn.Module):
    """A convolution that is no nn.Conv2d."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


@case(fused(bn1="conv1") | HEAD, unscored="conv2 bn2")
def convolution_in_a_module_of_ones_own() -> nn.Module:
    net = chain(nn.BatchNorm2d)
    net.conv2 = OwnConv(4, 6)
    return net


@case(fused(bn1="conv1") | {"offset": ("conv", ("offset",))} | HEAD, unscored="conv2 bn2")
def deformable() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(n.bn1(n.conv1(x)))
        return classify(n, F.relu(n.bn2(n.conv2(x, n.offset(x)))))

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), offset=conv(4, 18), conv2=DeformConv2d(4, 6, 3, padding=1),
        bn2=nn.BatchNorm2d(6), fc=nn.Linear(6, 3),
    )  # fmt: skip


@case(fused(bn1="conv1") | HEAD, unscored="conv2 bn2")
def scaled_before_its_norm() -> nn.Module:
    """A learned gain a channel stands between convolution and BatchNorm: the kernel is another than the stored one."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.bn2(n.conv2(F.relu(n.bn1(n.conv1(x)))) * n.gain)))

    net = chain(nn.BatchNorm2d)
    net.gain = nn.Parameter(torch.linspace(0.5, 2, 6).view(1, 6, 1, 1))
    net._wiring = forward
    return net


@case(fused(bn1="conv1") | HEAD, unscored="conv2 conv2.bn")
def quantization_aware_block() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.conv2(F.relu(n.bn1(n.conv1(x))))))

    block = ConvBn2d(4, 6, 3, padding=1, qconfig=get_default_qat_qconfig("fbgemm"))
    block.apply(disable_observer)
    block.apply(disable_fake_quant)
    return Wired(forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=block, fc=nn.Linear(6, 3))
