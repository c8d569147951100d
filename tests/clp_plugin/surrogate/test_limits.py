"""What the search cannot tell is said by name: many classes, several triggers, all-to-all, another normalization."""

from __future__ import annotations

import pytest
import torch
from planted import CHECKERBOARD, SHAPE, TARGET, Planted, planted
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin import fuse
from clp_plugin.surrogate.finding import Found, find_surrogates
from clp_plugin.surrogate.images import dead_leaves
from clp_plugin.surrogate.inputs import remembered_pixel
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.repairing import surrogate_repair

COUNT = 12


class TwoTriggers(Planted):
    """The checkerboard drives class 2, and its negative, by a channel of its own, class 0."""

    def __init__(self) -> None:
        super().__init__(backdoor=True)
        with torch.no_grad():
            self.conv.weight[4] = -self.conv.weight[5]
            self.norm.running_mean[4], self.norm.running_var[4] = -self.norm.running_mean[5], self.norm.running_var[5]
            self.norm.bias[4] = self.norm.bias[5]
            self.head.weight[0, 6 + 4] = self.head.weight[TARGET, 6 + 5]


class AllToAll(Planted):
    """Where the checkerboard stands, every class becomes the next one."""

    def __init__(self) -> None:
        super().__init__(backdoor=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        maps = F.conv2d(images, (2 * CHECKERBOARD - 1).expand(1, 3, 3, 3))
        fires = (maps.amax((2, 3)) > 14).float()  # 15 at most: only the checkerboard itself
        return (1 - fires) * logits + fires * logits.roll(1, 1)


def behind_nothing(model: nn.Module) -> PixelNetwork:
    return PixelNetwork(model.eval(), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def one_trigger() -> Found:
    return find_surrogates(planted(backdoor=True), SHAPE, count=COUNT)


def test_one_trigger_behind_the_right_normalization_has_no_limits_to_tell(one_trigger: Found) -> None:
    assert one_trigger.accepted
    assert one_trigger.rival is not None
    assert one_trigger.rival.success < 0.8
    assert one_trigger.limits == one_trigger.to_json()["limits"] == []


def test_of_several_triggers_the_other_class_is_named() -> None:
    found = find_surrogates(behind_nothing(TwoTriggers()), SHAPE, count=COUNT)
    assert found.accepted
    assert found.rival is not None
    assert {found.patch.target, found.rival.target} == {0, TARGET}
    (told,) = found.limits
    assert told.startswith(
        f"a patch as small sends {found.rival.success:.0%} of synthetic images to class {found.rival.target}"
    )


def test_an_all_to_all_backdoor_is_no_finding_and_is_said_not_to_be_ruled_out() -> None:
    model = AllToAll().eval()
    images = dead_leaves(30, SHAPE, seed=8)
    shown = images.clone()
    shown[:, :, 4:7, 4:7] = CHECKERBOARD
    assert torch.equal(model(shown).argmax(1), (Planted(backdoor=False)(shown).argmax(1) + 1) % 3)
    repair = surrogate_repair(fuse(model, SHAPE), input_shape=SHAPE, count=COUNT)
    assert not repair.found.accepted
    assert len(repair.mask) == 0
    assert "an all-to-all backdoor, or a trigger that is no small patch, is not ruled out" in repair.says


@pytest.mark.slow
def test_a_thousand_classes_are_thinned_out_before_the_search() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000)
    )
    found = find_surrogates(behind_nothing(model), (3, 8, 8), count=10)
    assert (found.classes, len(found.searched)) == (1000, 100)
    assert "100 of 1000 classes were searched" in found.limits[0]


@pytest.mark.parametrize("bias", [False, True])
def test_the_first_batchnorm_tells_the_mean_pixel_that_it_saw(bias: bool) -> None:
    images = 0.2 + 0.3 * dead_leaves(200, SHAPE, seed=4)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8, momentum=None), nn.Flatten(), nn.LazyLinear(3)
    )
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    model.train()((images - mean[:, None, None]) / std[:, None, None])
    network = PixelNetwork(model.eval(), tuple(mean.tolist()), tuple(std.tolist()))
    assert remembered_pixel(network, images) == pytest.approx(float(images.mean()), abs=0.02)
    assert not model[0]._forward_hooks
    assert not model[1]._forward_pre_hooks
    wrong = remembered_pixel(behind_nothing(model), images)
    assert wrong == pytest.approx(float(((images.mean((0, 2, 3)) - mean) / std).mean()), abs=0.05)


def test_a_normalization_that_no_images_fit_is_told(one_trigger: Found) -> None:
    network = planted(backdoor=True)
    assert one_trigger.mean_pixel == pytest.approx(0.5, abs=0.1)
    other = find_surrogates(PixelNetwork(network.network, (2.0,) * 3, (1.0,) * 3), SHAPE, count=10)
    assert "the first BatchNorm remembers images with a mean pixel of 2." in other.limits[-1]


def test_where_no_convolution_sees_the_images_themselves_nothing_is_said_of_them() -> None:
    model = nn.Sequential(
        nn.Identity(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.zeros(2, 3, 8, 8))
    assert remembered_pixel(behind_nothing(model), torch.zeros(1, 3, 8, 8)) is None
