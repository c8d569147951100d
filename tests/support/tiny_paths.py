"""BatchNorms behind convolutions, by every way that a tensor takes there."""

from __future__ import annotations

import torch
from tiny_parts import CHAIN, HEAD, Wired, case, chain, classify, conv, fused
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import FrozenBatchNorm2d


@case(CHAIN)
def plain() -> nn.Module:
    return chain(nn.BatchNorm2d)


@case(CHAIN)
def strided_dilated_circular() -> nn.Module:
    return chain(nn.BatchNorm2d, stride=2, dilation=2, padding=2, padding_mode="circular", groups=2)


@case(CHAIN)
def sync_batchnorm() -> nn.Module:
    return chain(nn.SyncBatchNorm)


@case(CHAIN)
def norm_without_affine() -> nn.Module:
    return chain(lambda k: nn.BatchNorm2d(k, affine=False))


@case(CHAIN)
def frozen_batchnorm() -> nn.Module:
    return chain(FrozenBatchNorm2d)


@case(fused(bn1="conv1") | HEAD, unscored="conv2")
def norm_without_statistics() -> nn.Module:
    net = chain(nn.BatchNorm2d)
    net.bn2 = nn.BatchNorm2d(6, track_running_stats=False)  # depends on the batch: no fixed linear map
    return net


@case(fused(bn1="conv1", bn2="conv2", bn3="short") | HEAD)
def residual_in_place() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(n.bn1(n.conv1(x)), inplace=True)
        out = n.bn2(n.conv2(x))
        out += n.bn3(n.short(x))
        return classify(n, out.relu_())

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(4, 6), bn2=nn.BatchNorm2d(6),
        short=conv(4, 6, 1), bn3=nn.BatchNorm2d(6), fc=nn.Linear(6, 3),
    )  # fmt: skip


@case({"conv1": ("conv", ("conv1",)), "conv2": ("conv", ("conv2",)), "bn": ("diagonal", ())} | HEAD)
def sum_through_a_view() -> nn.Module:
    """The convolution's own tensor object reaches the norm, but a view of it was added to: no longer the conv's output."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        a, b = n.conv1(x), n.conv2(x)
        a.flatten(2)[:, :, :-1].add_(b.flatten(2)[:, :, :-1])
        return classify(n, F.relu(n.bn(a)))

    return Wired(forward, conv1=conv(3, 4), conv2=conv(3, 4), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 3))


@case({"bn1": ("fused", ("conv1",)), "conv2": ("conv", ("conv2",)), "bn2": ("diagonal", ())} | HEAD)
def pre_activation() -> nn.Module:
    """Registered in an order that misleads the published rule: it would pair bn2 with conv1."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = n.conv1(x)
        x = x + n.conv2(F.relu(n.bn1(x)))
        return classify(n, F.relu(n.bn2(x)))

    return Wired(
        forward, conv1=conv(3, 4), bn2=nn.BatchNorm2d(4), bn1=nn.BatchNorm2d(4), conv2=conv(4, 4), fc=nn.Linear(4, 3)
    )


@case(fused(bn1="conv1", bn2="conv1 conv2", bn3="conv1 conv2 conv3") | HEAD)
def dense() -> nn.Module:
    """bn3's last two channels are the pooled image, which no convolution made."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        a = n.conv1(x)
        b = n.conv2(F.relu(n.bn1(a)))
        c = n.conv3(F.relu(n.bn2(torch.cat([a, b], 1))))
        rest = F.avg_pool2d(x, 3, 1, 1)[:, :2]
        return classify(n, F.relu(n.bn3(torch.cat([a, b, c, rest], 1))))

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(4, 2), bn2=nn.BatchNorm2d(6), conv3=conv(6, 2),
        bn3=nn.BatchNorm2d(10), fc=nn.Linear(10, 3),
    )  # fmt: skip


@case(fused(bn1="conv1", bn2="conv1") | HEAD)
def shuffle_and_chunk() -> nn.Module:
    """bn1 gets channels 0 4 1 5 of conv1, bn2 gets 2 6 3 7."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        y = n.conv1(x)
        y = (
            y.view(len(y), 2, 4, *y.shape[2:])
            .transpose(1, 2)
            .reshape(y.shape)
            .contiguous(memory_format=torch.channels_last)
        )
        a, b = y.chunk(2, dim=1)
        return classify(n, torch.cat([F.relu(n.bn1(a)), F.relu(n.bn2(F.dropout(b, training=n.training)))], 1))

    return Wired(forward, conv1=conv(3, 8), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(8, 3))


@case(fused(bn1="conv1", bn2="depthwise", bn3="grouped") | HEAD)
def depthwise_and_grouped() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(n.bn2(n.depthwise(F.relu(n.bn1(n.conv1(x))))))
        return classify(n, F.relu(n.bn3(n.grouped(x))))

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), depthwise=conv(4, 4, groups=4), bn2=nn.BatchNorm2d(4),
        grouped=conv(4, 6, groups=2), bn3=nn.BatchNorm2d(6), fc=nn.Linear(6, 3),
    )  # fmt: skip


@case(CHAIN)
def transposed() -> nn.Module:
    net = chain(nn.BatchNorm2d)
    net.conv2 = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    return net


@case(CHAIN, shape=(3, 12))
def one_dimensional() -> nn.Module:
    net = chain(nn.BatchNorm1d)
    net.conv1, net.conv2 = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 6, 3, stride=2)
    return net


@case(CHAIN, shape=(3, 4, 6, 6))
def three_dimensional() -> nn.Module:
    net = chain(nn.BatchNorm3d)
    net.conv1, net.conv2 = nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 6, (1, 3, 3))
    return net


@case(fused(bn="conv1") | HEAD)
def shared_block() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.relu(n.bn(n.conv1(x)))
        return classify(n, x)

    return Wired(forward, conv1=conv(3, 3), bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 3))


@case(fused(bn1="conv1", bn2="conv1") | HEAD)
def shared_conv() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.bn2(n.conv1(F.relu(n.bn1(n.conv1(x)))))))

    return Wired(forward, conv1=conv(3, 3), bn1=nn.BatchNorm2d(3), bn2=nn.BatchNorm2d(3), fc=nn.Linear(3, 3))


@case({"conv1": ("conv", ("conv1",)), "bn": ("diagonal", ()), "conv2": ("conv", ("conv2",))} | HEAD)
def shared_norm() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.bn(n.conv2(F.relu(n.bn(n.conv1(x)))))))

    return Wired(forward, conv1=conv(3, 4), conv2=conv(4, 4), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 3))


@case({"conv1": ("conv", ("conv1",)), "conv2": ("conv", ("conv2",))} | HEAD)
def no_norm() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.conv2(F.relu(n.conv1(x)))))

    return Wired(forward, conv1=conv(3, 4), conv2=conv(4, 6), fc=nn.Linear(6, 3))


@case(CHAIN)
def one_channel() -> nn.Module:
    net = chain(nn.BatchNorm2d)
    net.conv1, net.bn1, net.conv2 = conv(3, 1), nn.BatchNorm2d(1), conv(1, 6)
    return net
