"""One line on what the published pairing would do: the truth table that was found by running it with hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clp_plugin.architectures import build_model
from clp_plugin.fusion import fuse
from clp_plugin.published_rule import published_rule_note


def note(model: nn.Module, size: int = 32) -> str:
    return published_rule_note(model, fuse(model.eval(), (3, size, size)))


@pytest.mark.parametrize(
    ("spec", "wrong", "norms"),
    [
        ("builtin:preactresnet18", 7, 16),
        ("builtin:senet18", 8, 17),
        ("builtin:resnet18", 0, 20),
        ("torchvision:vgg11_bn", 0, 8),
        ("torchvision:mobilenet_v3_large", 0, 46),
        ("torchvision:shufflenet_v2_x1_0", 0, 56),
        ("torchvision:densenet121", 62, 121),
    ],
)
def test_wrong_pairs_are_counted_as_hooks_count_them(spec: str, wrong: int, norms: int) -> None:
    with torch.device("meta"):
        model = build_model(spec, num_classes=10)
    options = {"width": 8} if spec.startswith("builtin") else {}
    said = note(
        build_model(spec, num_classes=10, **options) if options or "dense" in spec else model.to_empty(device="cpu")
    )
    expected = f"wrong for {wrong} of {norms} BatchNorms" if wrong else f"all {norms} BatchNorms are fed"
    assert expected in said


def test_a_preactivation_network_names_the_first_wrong_ones() -> None:
    said = note(build_model("builtin:preactresnet18", num_classes=10, width=8))
    assert "no such convolution feeds layer1.1.bn1, layer2.0.bn1, layer2.1.bn1, ..." in said
    assert "crash" not in said


def test_densenet_would_crash_at_its_second_dense_layer() -> None:
    said = note(build_model("torchvision:densenet121", num_classes=10))
    assert (
        "would crash: features.denseblock1.denselayer2.norm1 has 96 channels, the last convolution before it 32" in said
    )


def test_without_a_batchnorm_it_would_do_nothing() -> None:
    assert "do nothing here, without a word" in note(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_a_dead_channel_would_crash_it() -> None:
    model = small()
    model[4].running_var[[1, 2]] = 0  # type: ignore[index]
    assert "would crash: running variance 0 in 2 channels of 4" in note(model)
    assert "crash" not in note(small())


def test_norms_without_weights_or_before_any_convolution_would_crash_it() -> None:
    assert "would crash: 1 has no weight" in note(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)))
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    assert "would crash: no convolution comes before 0" in note(first)
    assert "wrong for 1 of 1" in note(first)


def test_a_shuffled_feed_is_a_wrong_pair() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(nn.functional.channel_shuffle(self.conv(x), 2))

    assert "wrong for 1 of 1" in note(Shuffled())
