"""Physically smaller networks compute what the masked ones do."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.errors import ConfigError
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import masked
from clp_plugin.masking.compact import compact
from clp_plugin.types import Mask

SHAPE = (3, 32, 32)


def trained_looking(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def mask_of(**pruned: tuple[int, list[int]]) -> Mask:
    vectors = {}
    for name, (channels, indices) in pruned.items():
        vectors[name.replace("__", ".")] = np.isin(np.arange(channels), indices)
    return Mask(vectors)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(1))))


pytest.importorskip("torch_pruning")


def test_a_channel_inside_a_block_is_removed_and_the_logits_stay() -> None:
    model = trained_looking(build("resnet18", num_classes=4, width=8, blocks=(1, 1)))
    mask = mask_of(layer1__0__bn1=(8, [1, 5]))
    view = fuse(model, SHAPE)
    smaller: Any = compact(view, mask, SHAPE)
    assert smaller.layer1[0].conv1.weight.shape[0] == 6
    assert smaller.layer1[0].conv2.weight.shape[1] == 6
    torch.testing.assert_close(logits(smaller), logits(masked(model, mask)), rtol=1e-4, atol=1e-5)


def test_a_channel_of_a_residual_sum_stays_while_a_summand_needs_it() -> None:
    model = trained_looking(build("resnet18", num_classes=4, width=8, blocks=(1, 1)))
    only_one = mask_of(layer1__0__bn2=(8, [2]))
    kept: Any = compact(fuse(model, SHAPE), only_one, SHAPE)
    assert kept.layer1[0].conv2.weight.shape[0] == 8
    both = mask_of(bn1=(8, [2]), layer1__0__bn2=(8, [2]))
    removed: Any = compact(fuse(model, SHAPE), both, SHAPE)
    assert removed.layer1[0].conv2.weight.shape[0] == 7
    assert removed.conv1.weight.shape[0] == 7
    torch.testing.assert_close(logits(removed), logits(masked(model, both)), rtol=1e-4, atol=1e-5)


def test_the_original_model_is_unchanged() -> None:
    model = trained_looking(build("vgg11_bn", num_classes=4, width=8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    view = fuse(model, SHAPE)
    first = view.layers[0]
    smaller = compact(view, Mask({first.name: np.arange(first.channels) < 3}), SHAPE)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_torch_pruning_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    model = trained_looking(build("resnet18", num_classes=4, width=8, blocks=(1,)))
    with pytest.raises(ConfigError, match=r"clp-plugin\[compact\]"):
        compact(fuse(model, SHAPE), mask_of(bn1=(8, [0])), SHAPE)
