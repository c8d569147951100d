"""Layers of more than one convolution and one BatchNorm, and what a run needs or leaves behind."""

from __future__ import annotations

import torch
from tiny_parts import CHAIN, HEAD, Wired, case, chain, classify, conv, fused
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@case(fused(bn1="conv1", bn2="fc1") | HEAD, shape=(3, 4, 4))
def flattened_into_1d_norms() -> nn.Module:
    """bn1 sees 4 channels of 2 x 2 as 16 features: each channel of the convolution four times."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return n.fc(F.relu(n.bn2(n.fc1(F.relu(n.bn1(n.conv1(x).flatten(1)))))))

    return Wired(
        forward, conv1=conv(3, 4, 3, padding=0), bn1=nn.BatchNorm1d(16), fc1=nn.Linear(16, 5), bn2=nn.BatchNorm1d(5),
        fc=nn.Linear(5, 3),
    )  # fmt: skip


@case(fused(bn1="conv1") | {"squeeze": ("conv", ("squeeze",)), "excite": ("conv", ("excite",))} | HEAD)
def squeeze_and_excitation() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = n.bn1(n.conv1(x))
        gate = torch.sigmoid(n.excite(F.relu(n.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return classify(n, F.relu(x * gate))

    return Wired(
        forward,
        conv1=conv(3, 4),
        bn1=nn.BatchNorm2d(4),
        squeeze=conv(4, 2, 1),
        excite=conv(2, 4, 1),
        fc=nn.Linear(4, 3),
    )


class StandardizedConv(nn.Conv2d):
    """Uses another kernel than the one it stores."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.used(), self.bias, self.stride, self.padding)

    def used(self) -> Tensor:
        w = self.weight
        return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


@case(CHAIN)
def weight_standardized() -> nn.Module:
    net = chain(nn.BatchNorm2d)
    net.conv2 = StandardizedConv(4, 6, 3, padding=1)
    return net


@case(CHAIN)
def parametrized() -> nn.Module:
    net = chain(nn.BatchNorm2d)
    nn.utils.parametrizations.weight_norm(net.conv1)
    nn.utils.parametrizations.spectral_norm(net.conv2)
    return net


@case({"features": ("conv", ("features",)), "bn": ("fused", ("conv1",)), "classifier": ("head", ("classifier",))})
def convolutional_head() -> nn.Module:
    """As squeezenet: a 1x1 convolution is the classifier; ReLU and a pool follow it."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(n.bn(n.conv1(F.relu(n.features(x)))))
        return F.adaptive_avg_pool2d(F.relu(n.classifier(F.dropout(x, training=n.training))), 1).flatten(1)

    return Wired(forward, features=conv(3, 4), conv1=conv(4, 4), bn=nn.BatchNorm2d(4), classifier=conv(4, 3, 1))


@case({"conv1": ("conv", ("conv1",))} | HEAD)
def three_linear_maps() -> nn.Module:
    """Only the last is the head: the hidden ones put out no class."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(n.conv1(x)), 2).flatten(1)
        return n.fc(F.relu(n.fc2(F.dropout(F.relu(n.fc1(x)), training=n.training))))

    return Wired(forward, conv1=conv(3, 4), fc1=nn.Linear(16, 5), fc2=nn.Linear(5, 4), fc=nn.Linear(4, 3))


@case(CHAIN)
def depends_on_data() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        x = x if x.sum() > 0 else -x
        return classify(n, F.relu(n.bn2(n.conv2(F.relu(n.bn1(n.conv1(x)))))))

    net = chain(nn.BatchNorm2d)
    net._wiring = forward
    return net


@case(fused(bn1="conv1") | HEAD | fused(aux_bn="aux_conv") | {"aux_fc": ("head", ("aux_fc",))})
def auxiliary_head() -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> object:
        x = F.relu(n.bn1(n.conv1(x)))
        main = classify(n, x)
        return (main, n.aux_fc(F.relu(n.aux_bn(n.aux_conv(x))).mean((2, 3)))) if n.training else main

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), aux_conv=conv(4, 5), aux_bn=nn.BatchNorm2d(5),
        aux_fc=nn.Linear(5, 3), fc=nn.Linear(4, 3),
    )  # fmt: skip


@case(fused(bn1="conv1", bn2="conv2") | HEAD)
def written_into_a_buffer() -> nn.Module:
    """Two convolutions fill halves of a tensor that starts as zeros; only then come the norms."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 6, *x.shape[2:])
        y[:, :4] = n.conv1(x)
        y[:, 4:] = n.conv2(x)
        return classify(n, F.relu(torch.cat([n.bn1(y[:, :4]), n.bn2(y[:, 4:])], 1)))

    return Wired(
        forward, conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(3, 2), bn2=nn.BatchNorm2d(2), fc=nn.Linear(6, 3)
    )
