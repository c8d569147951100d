"""Tiny networks whose linear layers were written down by hand, one per thing that real models do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import disable_fake_quant, disable_observer, get_default_qat_qconfig
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

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


def _chain(norm: Callable[[int], nn.Module], **options: object) -> nn.Module:
    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return classify(n, F.relu(n.bn2(n.conv2(F.relu(n.bn1(n.conv1(x)))))))

    first, second = conv(3, 4), conv(4, 6, **options)
    return Wired(forward, conv1=first, bn1=norm(4), conv2=second, bn2=norm(6), fc=nn.Linear(6, 3))


CHAIN = fused(bn1="conv1", bn2="conv2") | HEAD


@case(CHAIN)
def plain() -> nn.Module:
    return _chain(nn.BatchNorm2d)


@case(CHAIN)
def strided_dilated_circular() -> nn.Module:
    return _chain(nn.BatchNorm2d, stride=2, dilation=2, padding=2, padding_mode="circular", groups=2)


@case(CHAIN)
def sync_batchnorm() -> nn.Module:
    return _chain(nn.SyncBatchNorm)


@case(CHAIN)
def norm_without_affine() -> nn.Module:
    return _chain(lambda k: nn.BatchNorm2d(k, affine=False))


@case(CHAIN)
def frozen_batchnorm() -> nn.Module:
    return _chain(FrozenBatchNorm2d)


@case(fused(bn1="conv1") | HEAD, unscored="conv2")
def norm_without_statistics() -> nn.Module:
    net = _chain(nn.BatchNorm2d)
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
    net = _chain(nn.BatchNorm2d)
    net.conv2 = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    return net


@case(CHAIN, shape=(3, 12))
def one_dimensional() -> nn.Module:
    net = _chain(nn.BatchNorm1d)
    net.conv1, net.conv2 = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 6, 3, stride=2)
    return net


@case(CHAIN, shape=(3, 4, 6, 6))
def three_dimensional() -> nn.Module:
    net = _chain(nn.BatchNorm3d)
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
    net = _chain(nn.BatchNorm2d)
    net.conv1, net.bn1, net.conv2 = conv(3, 1), nn.BatchNorm2d(1), conv(1, 6)
    return net


@case(fused(bn1="conv1", bn2="fc1") | HEAD)
def flattened_into_1d_norms() -> nn.Module:
    """bn1 sees 4 channels of 2 x 2 as 16 features: each channel of the convolution four times."""

    def forward(n: nn.Module, x: Tensor) -> Tensor:
        return n.fc(F.relu(n.bn2(n.fc1(F.relu(n.bn1(n.conv1(x).flatten(1)))))))

    return Wired(
        forward, conv1=conv(3, 4, 3, padding=0), bn1=nn.BatchNorm1d(16), fc1=nn.Linear(16, 5), bn2=nn.BatchNorm1d(5),
        fc=nn.Linear(5, 3),
    )  # fmt: skip


CASES["flattened_into_1d_norms"] = Case(
    "flattened_into_1d_norms", flattened_into_1d_norms, CASES["flattened_into_1d_norms"].layers, (3, 4, 4)
)


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
    net = _chain(nn.BatchNorm2d)
    net.conv2 = StandardizedConv(4, 6, 3, padding=1)
    return net


@case(CHAIN)
def parametrized() -> nn.Module:
    net = _chain(nn.BatchNorm2d)
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

    net = _chain(nn.BatchNorm2d)
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


def _normalized(norm: nn.Module) -> nn.Module:
    net = _chain(nn.BatchNorm2d)
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
    net = _chain(nn.BatchNorm2d)
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

    net = _chain(nn.BatchNorm2d)
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

    net = _chain(nn.BatchNorm2d)
    net._wiring = forward
    return net


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
