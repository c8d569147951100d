"""What a network ends with."""

from __future__ import annotations

import torch
from tiny_parts import HEAD, Wired, case, chain, classify, conv, fused
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@case(fused(bn1="conv1") | {"bn2": ("head", ("fc",))})
def norm_on_the_logits() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return F.log_softmax(n.bn2(classify(n, F.relu(n.bn1(n.conv1(x))))), dim=1)

    return Wired(forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, 3), bn2=nn.BatchNorm1d(3))


@case(fused(bn1="conv1") | {"bn2": ("head", ("conv2",)), "bn3": ("head", ("short",))})
def convolutions_with_norms_as_the_head() -> nn.Module:
    """Class maps, summed over two branches, normalized by group and pooled."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(n.bn1(n.conv1(x)))
        maps = n.norm(F.relu6(n.bn2(n.conv2(x)) + n.bn3(n.short(x))))
        return F.max_pool2d(maps, 2).mean((2, 3))

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(4, 3, 1), bn2=nn.BatchNorm2d(3), short=conv(4, 3, 1),
        bn3=nn.BatchNorm2d(3), norm=nn.GroupNorm(1, 3),
    )  # fmt: skip


@case(fused(bn1="conv1") | {f"fc{i}": ("head", (f"fc{i}",)) for i in (1, 2)})
def mean_of_stacked_heads() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(n.bn1(n.conv1(x))).mean((2, 3))
        return torch.stack([n.fc1(x), n.fc2(x)]).mean(0)

    return Wired(forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), fc1=nn.Linear(4, 3), fc2=nn.Linear(4, 3))


@case(fused(bn1="conv1", bn2="conv2") | HEAD)
def logits_beside_feature_maps() -> nn.Module:
    """The maps that are returned with the logits are no classes."""

    def forward(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
        maps = F.relu(n.bn2(n.conv2(F.relu(n.bn1(n.conv1(x))))))
        return {"features": maps, "logits": classify(n, maps)}

    net = chain(nn.BatchNorm2d)
    net._wiring = forward
    return net
