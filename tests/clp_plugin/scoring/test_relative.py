"""The relative score ignores function-preserving rescales of ReLU networks; the paper's score does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_nets import Wired, classify, conv
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.fusion.layers import fuse
from clp_plugin.scoring.lipschitz import score
from clp_plugin.scoring.relative import TypicalScales

Build = Callable[..., nn.Module]
A, K = 7.0, 1  # factor and channel
Rescale = Callable[[nn.Module], None]


def louder(*norms: nn.Module) -> None:
    for norm in norms:
        norm.weight.data[K] *= A
        norm.bias.data[K] *= A


def filters(*convs: nn.Module) -> None:
    for module in convs:
        module.weight.data[K] *= A
        module.bias.data[K] *= A


def used_to(*norms: nn.Module) -> None:
    """Statistics of a channel that grew by A, eps included."""
    for norm in norms:
        norm.running_mean[K] *= A
        norm.running_var[K] = A**2 * (norm.running_var[K] + norm.eps) - norm.eps


def reads(module: nn.Module, channel: int = K) -> None:
    module.weight.data[:, channel] /= A


def residual(n: nn.Module) -> None:
    louder(n.bn2, n.bn3)
    reads(n.fc)


def pre_activation(n: nn.Module) -> None:
    filters(n.conv1, n.conv2)
    used_to(n.bn1, n.bn2)


def concatenation(n: nn.Module) -> None:
    """Channel K of conv1 reaches bn1, and channel K of bn2 and of bn3 by concatenation."""
    filters(n.conv1)
    used_to(n.bn1, n.bn2, n.bn3)


def depthwise(n: nn.Module) -> None:
    louder(n.bn1)
    n.depthwise.weight.data[K] /= A


def grouped(n: nn.Module) -> None:
    louder(n.bn2)
    n.grouped.weight.data[:3, K] /= A  # the first group reads channels 0 and 1


def squeezed(n: nn.Module) -> None:
    n.squeeze.weight.data[K] *= A
    n.squeeze.bias.data[K] *= A
    reads(n.excite)


def diagonal(n: nn.Module) -> None:
    louder(n.bn2)
    reads(n.fc)


def chain(n: nn.Module) -> None:
    louder(n.bn1)
    reads(n.conv2)


def transposed(n: nn.Module) -> None:
    louder(n.bn1)
    n.conv2.weight.data[K] /= A  # stored (in, out / groups)


RESCALES: dict[str, tuple[str, Rescale]] = {
    "chain": ("plain", chain),
    "one-dimensional chain": ("one_dimensional", chain),
    "transposed reader": ("transposed", transposed),
    "frozen norm": ("frozen_batchnorm", chain),
    "residual sum, both summands": ("residual_in_place", residual),
    "inside a residual branch": ("residual_in_place", lambda n: (louder(n.bn1), reads(n.conv2), reads(n.short))),
    "trunk of a pre-activation network": ("pre_activation", pre_activation),
    "diagonal layer": ("pre_activation", diagonal),
    "concatenation": ("dense", concatenation),
    "depthwise reader": ("depthwise_and_grouped", depthwise),
    "grouped reader": ("depthwise_and_grouped", grouped),
    "convolution without norm": ("no_norm", lambda n: (filters(n.conv1), reads(n.conv2))),
    "squeeze of a gate": ("squeeze_and_excitation", squeezed),
    "hidden layer of the classifier": ("three_linear_maps", lambda n: (filters(n.fc1), reads(n.fc2))),
    "convolutional head": ("convolutional_head", lambda n: (louder(n.bn), reads(n.classifier))),
    "shuffled channels": ("shuffle_and_chunk", lambda n: (louder(n.bn1), reads(n.fc))),
    "auxiliary head": ("auxiliary_head", lambda n: (louder(n.aux_bn), reads(n.aux_fc))),
}
SHAPES = {"one_dimensional": (3, 12)}


@pytest.mark.parametrize("name", RESCALES)
def test_rescale_that_keeps_the_function_keeps_the_relative_score_only(name: str, build: Build) -> None:
    net, rescale = RESCALES[name]
    shape = SHAPES.get(net, (3, 8, 8))
    model = build(net).double()
    view = fuse(model, shape)
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        logits = model(image)
        relative, paper = score(view, score="relative").sigma, score(view).sigma
        rescale(model)
        torch.testing.assert_close(model(image), logits, rtol=1e-9, atol=1e-12)
    after = score(view, score="relative").sigma
    for layer in relative:
        np.testing.assert_allclose(after[layer], relative[layer], rtol=1e-9, err_msg=layer)
    moved = any(not np.allclose(paper[layer], now, rtol=1e-3) for layer, now in score(view).sigma.items())
    # In a concatenation every layer divides by statistics that grew alike; hidden linear maps are not scored.
    assert moved == (name not in ("concatenation", "hidden layer of the classifier"))


READERS = {
    "reflect padding": lambda: conv(4, 6, padding_mode="reflect"),
    "circular padding": lambda: conv(4, 6, padding_mode="circular"),
    "replicate padding": lambda: conv(4, 6, padding_mode="replicate"),
}


@pytest.mark.parametrize("reader", READERS)
def test_rescale_is_followed_through_any_padding(reader: str, build: Build) -> None:
    model = build("plain").double()
    model.conv2 = READERS[reader]().double()
    view = fuse(model, (3, 8, 8))
    before = score(view, score="relative").sigma
    chain(model)
    for layer, values in score(view, score="relative").sigma.items():
        np.testing.assert_allclose(values, before[layer], rtol=1e-9, err_msg=layer)


def test_relative_score_of_a_chain_by_hand(build: Build) -> None:
    """SVD of W_k diag(|gamma| of the inputs), over sqrt(var_k + eps), in plain loops."""
    model = build("plain").double()
    found = score(fuse(model, (3, 8, 8)), score="relative").sigma
    gamma, inputs = np.ones(3), []
    for conv_, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2)):
        weight, variance = conv_.weight.detach().numpy(), norm.running_var.numpy()
        rows = []
        for k in range(len(weight)):
            matrix = weight[k].reshape(len(gamma), -1) * gamma[:, None]
            rows.append(np.linalg.svd(matrix, compute_uv=False)[0] / (variance[k] + norm.eps) ** 0.5)
        inputs.append(rows)
        gamma = norm.weight.detach().abs().numpy()
    np.testing.assert_allclose(found["bn1"], inputs[0], rtol=1e-9)
    np.testing.assert_allclose(found["bn2"], inputs[1], rtol=1e-9)


def scales_before_norm(operate: Callable[[nn.Module, Tensor, Tensor], Tensor], k: int = 2) -> list[float]:
    """Typical scales at a norm that reads ``operate(net, a, b)``; a and b have scales (2, 3) and (4, 5)."""
    net = Wired(
        lambda n, x: classify(n, n.bn(operate(n, n.bn_a(n.conv_a(x)), n.bn_b(n.conv_b(x))))),
        conv_a=conv(3, 2), bn_a=nn.BatchNorm2d(2), conv_b=conv(3, 2), bn_b=nn.BatchNorm2d(2), bn=nn.BatchNorm2d(k),
        fc=nn.Linear(k, 2),
    ).eval()  # fmt: skip
    net.bn_a.weight.data, net.bn_b.weight.data = torch.tensor([2.0, -3.0]), torch.tensor([4.0, 5.0])
    view = fuse(net, (3, 8, 8))
    position, node = view.call("bn")
    return TypicalScales(view.graphs[position], view.modules).entering(node, k).tolist()


RULES = {
    "activation": (lambda n, a, b: F.relu(a), [2, 3]),
    "hardswish": (lambda n, a, b: F.hardswish(a), [2, 3]),
    "pool": (lambda n, a, b: F.avg_pool2d(a, 2), [2, 3]),
    "sum": (lambda n, a, b: a + b, [20**0.5, 34**0.5]),
    "difference": (lambda n, a, b: a - b, [20**0.5, 34**0.5]),
    "product": (lambda n, a, b: a * b, [8, 15]),
    "gate": (lambda n, a, b: a * torch.sigmoid(b), [2, 3]),
    "concatenation": (lambda n, a, b: torch.cat([a, b], 1), [2, 3, 4, 5]),
}


@pytest.mark.parametrize("name", RULES)
def test_scale_rules(name: str) -> None:
    operate, expected = RULES[name]
    assert scales_before_norm(operate, len(expected)) == pytest.approx(expected)
