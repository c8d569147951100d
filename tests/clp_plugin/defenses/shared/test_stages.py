"""Stages of a network and attention on their maps, against computations by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fake_records import TinyNet, shaken
from slow_attention import slow_attention
from torch import Tensor, nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.defenses.shared.stages import Stage, attention, maps_of, stages


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes=5, width=2, **options).eval()


def tiny() -> Any:
    return shaken(TinyNet())


def found(model: nn.Module, size: int, height: int | None = None) -> list[str]:
    return [str(stage) for stage in stages(model.eval(), torch.rand(1, 3, height or size, size))]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (tiny, 12, ["bn_sum 12x12", "conv3 5x5"]),
        (lambda: small("resnet18"), 32, ["layer1 32x32", "layer2 16x16", "layer3 8x8", "layer4 4x4"]),
        (lambda: small("preactresnet18"), 16, ["layer1 16x16", "layer2 8x8", "layer3 4x4", "layer4 2x2"]),
        (lambda: small("preactresnet18"), 8, ["layer1 8x8", "layer2 4x4", "layer3 2x2"]),
        (lambda: small("senet18"), 16, ["layer1 16x16", "layer2 8x8", "layer3 4x4", "layer4 2x2"]),
        (
            lambda: small("vgg11_bn"),
            32,
            ["features.2 32x32", "features.6 16x16", "features.13 8x8", "features.20 4x4", "features.27 2x2"],
        ),
    ],
)
def test_a_stage_is_what_finishes_last_with_maps_of_its_size(make: Any, size: int, expected: list[str]) -> None:
    assert found(make(), size) == expected


class Wired(nn.Module):
    """One ReLU module for all sizes, a head that stretches a small map, tokens with their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=4, padding=1)
        self.tokens = nn.LayerNorm(4)
        self.stretch = nn.AdaptiveAvgPool2d(7)
        self.fc = nn.Linear(6 * 49, 5)

    def forward(self, images: Tensor) -> Tensor:
        large = self.relu(self.first(images))
        large = large + self.tokens(large.movedim(1, -1)).movedim(-1, 1)
        return self.fc(self.stretch(self.relu(self.second(large))).flatten(1))  # type: ignore[no-any-return]


def test_a_shared_module_has_a_stage_for_each_size_and_what_is_no_new_map_has_none() -> None:
    assert found(Wired(), 8) == ["relu 8x8", "relu 2x2"]


def test_maps_that_no_weight_has_shaped_are_no_stage() -> None:
    """A normalization in front is the outermost module with maps of the image's size."""
    assert found(nn.Sequential(nn.BatchNorm2d(3, affine=False), tiny()), 12) == ["1.bn_sum 12x12", "1.conv3 5x5"]


def test_oblong_maps_are_maps() -> None:
    assert found(tiny(), 12, height=20) == ["bn_sum 20x12", "conv3 9x5"]


def test_looking_for_stages_changes_nothing() -> None:
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    stages(model, torch.rand(1, 3, 12, 12))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert hooks(model) == 0


def test_maps_are_those_of_the_right_module_and_call() -> None:
    model, images = Wired().eval(), torch.rand(3, 3, 8, 8)
    large, little = Stage("relu", (8, 8)), Stage("relu", (2, 2))
    with maps_of(model, [large, little]) as maps:
        model(torch.rand(2, 3, 8, 8))
        model(images)
    first = torch.relu(model.first(images))
    tokens = model.tokens(first.movedim(1, -1)).movedim(-1, 1)
    assert set(maps) == {large, little}
    assert torch.equal(maps[large], first)
    torch.testing.assert_close(maps[little], torch.relu(model.second(first + tokens)))
    with maps_of(model, [little]) as maps:
        model(images)
    assert set(maps) == {little}
    assert hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_normalized_sum_of_squares(dtype: torch.dtype) -> None:
    maps = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = attention(maps)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), torch.tensor(slow_attention(maps), dtype=torch.float64))


def test_silent_maps_have_no_attention_and_a_finite_gradient() -> None:
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    result = attention(maps)
    (result - 1).square().sum().backward()
    assert not result.any()
    assert maps.grad is not None
    assert not maps.grad.any()


def test_a_single_pixel_would_teach_nothing() -> None:
    """Why such maps are no stage: attention is 1 whatever the maps are."""
    assert torch.equal(attention(torch.randn(4, 7, 1, 1) + 3), torch.ones(4, 1))
