"""The attacker who knows CLP: what the training term computes, and that no channel stands out in the end."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_scenes import RECIPE, network, scene_of
from torch import Tensor, nn

from clp_plugin.adapters.builtin.attacks.badnets import BadNets
from clp_plugin.adapters.builtin.evasions.sigma import SigmaEvasion, channel_sigma
from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.errors import ConfigError
from clp_plugin.fusion.layers import fuse
from clp_plugin.scoring.lipschitz import score

SHAPE = (3, 8, 8)
ATTACK = BadNets.create(SHAPE, seed=0)
SCENE = scene_of(24, [1, 5], recipe=replace(RECIPE, epochs=12))


def shaken(model: nn.Module) -> nn.Module:
    """The network with random gains of either sign and random statistics at every BatchNorm."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_(generator=draw)
            assert module.running_var is not None
            module.running_var.uniform_(0.1, 2, generator=draw)
    return model


def penalty(model: nn.Module, **options: float) -> Tensor:
    hook = SigmaEvasion(**options).hook(model, ATTACK, SCENE)
    found = hook(Batch(torch.zeros(1, *SHAPE), torch.zeros(1)), torch.zeros(1), torch.Generator()).penalty
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width": 4, "blocks": (1, 1)}),
        ("preactresnet18", {"width": 4, "blocks": (1, 1)}),
        ("senet18", {"width": 4, "blocks": (1, 1)}),
        ("vgg11_bn", {"width": 2}),
    ],
)
def test_it_sees_the_scores_of_clp_in_every_layer_that_clp_prunes(name: str, options: dict[str, object]) -> None:
    model = shaken(build(name, num_classes=3, **options))
    view = fuse(model, (3, 32, 32))
    pruned = [layer for layer in view.layers if layer.kind in ("fused", "diagonal")]
    assert len(pruned) >= 4
    expected = score(view).sigma
    for layer in pruned:
        assert channel_sigma(view, layer).tolist() == pytest.approx(expected[layer.name].tolist(), rel=1e-4)


def by_hand(model: nn.Sequential, start: nn.Sequential, bound: float) -> float:
    """The term with the limits of ``start``, and kernels brought to the Frobenius norms that they have there."""
    total = 0.0
    for position in (0, 3):
        values = []
        for net in (model, start):
            kernels, norm = net[position].weight.detach().numpy(), net[position + 1]
            gain = np.abs(norm.weight.detach().numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
            largest = np.array([np.linalg.svd(one.reshape(len(one), -1))[1][0] for one in kernels])
            values.append((gain * largest, np.sqrt((kernels**2).sum((1, 2, 3)))))
        (sigma, length), (at_start, own_length) = values
        over = sigma * own_length / length - (at_start.mean() + bound * at_start.std())
        total += np.maximum(over, 0).sum() / at_start.mean()
    return total


def test_its_value_and_gradient_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    chain = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.Flatten()]
    model = shaken(nn.Sequential(*chain, nn.Linear(80, 3)).double())
    assert isinstance(model, nn.Sequential)
    found = penalty(model, weight=2.0, bound=0.5)
    assert float(found.detach()) == pytest.approx(2 * by_hand(model, model, 0.5), rel=1e-9)
    assert float(found.detach()) > 0
    weights = [model[position].weight for position in (0, 1, 3, 4)]
    gradients = torch.autograd.grad(found, weights)
    for _ in range(3):
        directions = [torch.randn_like(weight) for weight in weights]
        sides = []
        for step in (1e-6, -1e-6):
            moved = copy.deepcopy(model)
            for position, direction in zip((0, 1, 3, 4), directions, strict=True):
                moved[position].weight.data += step * direction
            sides.append(2 * by_hand(moved, model, 0.5))
        slope = sum(float((one * other).sum()) for one, other in zip(gradients, directions, strict=True))
        assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


def largest_z(model: nn.Module) -> float:
    scores = score(fuse(model.eval(), SHAPE)).sigma
    return float(max(((sigma - sigma.mean()) / sigma.std()).max() for sigma in scores.values()))


def test_a_channel_that_stands_out_is_drawn_in_by_the_training() -> None:
    trained = {}
    for weight in (0.0, 1.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build("resnet18", num_classes=3, width=16, blocks=(1, 1))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight[0] = 4.0
        hook = SigmaEvasion(weight, 1.0).hook(model, ATTACK, SCENE) if weight else None
        train(model, SCENE.images, SCENE.recipe, seed=0, hook=hook)
        trained[weight] = largest_z(model)
    assert trained[0.0] > 4
    assert trained[1.0] < 2.5


def test_weights_that_are_no_numbers_are_told_as_divergence() -> None:
    model = network()
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ConfigError, match="training diverged: a kernel holds NaN or infinity; lower lr"):
        penalty(model)
