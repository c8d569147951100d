"""Surrogate triggers on a network whose one backdoor channel was planted, and on its clean twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planted import CHANNEL, CHECKERBOARD, LAYER, SHAPE, TARGET, planted
from torch import nn

from clp_plugin import choose_u, fuse, score
from clp_plugin.errors import ConfigError
from clp_plugin.masking.apply import apply_mask
from clp_plugin.surrogate.finding import Found, Gate, find_surrogates
from clp_plugin.surrogate.images import dead_leaves, statistics_distance, synthesise
from clp_plugin.surrogate.order import gain_over_cost, prefix_masks, ranked
from clp_plugin.surrogate.patch import easiest, fit_patches, stamped
from clp_plugin.surrogate.pixels import PixelNetwork, shortfall
from clp_plugin.surrogate.rounds import prune_in_rounds
from clp_plugin.surrogate.stopping import Tried, agreement, best_stop, try_masks
from clp_plugin.surrogate.trigger import Surrogate
from clp_plugin.types import Mask

COUNT = 12


@pytest.fixture(scope="module")
def found() -> Found:
    return find_surrogates(planted(backdoor=True), SHAPE, count=COUNT)


def true_patch() -> Surrogate:
    return Surrogate("patch", TARGET, CHECKERBOARD.expand(3, 3, 3), (4, 4), 1.0, {})


def test_the_planted_class_and_a_patch_of_the_planted_size_are_found(found: Found) -> None:
    assert (found.patch.target, found.patch.size) == (TARGET, 3)
    assert found.patch.success >= 0.8
    assert Gate().passes(found.patch)
    assert min(found.patch.losses, key=found.patch.losses.__getitem__) == TARGET


def test_a_clean_twin_is_left_alone() -> None:
    network = planted(backdoor=False)
    view = fuse(network.network, SHAPE)
    chosen = choose_u(view, score(view), input_shape=SHAPE, count=COUNT)
    assert not chosen.accepted
    assert len(chosen.mask) == 0
    assert chosen.u == math.inf
    assert "no surrogate trigger" in chosen.says


def test_u_is_chosen_that_prunes_the_planted_channel_alone() -> None:
    network = planted(backdoor=True)
    view = fuse(network.network, SHAPE)
    chosen = choose_u(view, score(view), input_shape=SHAPE, count=COUNT)
    assert chosen.accepted
    assert chosen.mask.indices() == {LAYER: [CHANNEL]}
    assert chosen.curve[0].pruned == 0
    assert [one.success for one in chosen.curve if one.u == chosen.u] == [0.0]


def test_rounds_prune_the_planted_channel_first_and_end_the_true_trigger(found: Found) -> None:
    network = planted(backdoor=True)
    images = dead_leaves(60, SHAPE, seed=77)
    assert true_patch().success_on(network, images, network.classes(images)) == 1.0
    mask, log = prune_in_rounds(network, fuse(network.network, SHAPE), found, rounds=1)
    assert mask.indices() == {LAYER: [CHANNEL]}
    assert log[0].mask == mask
    assert (log[0].to_json()["pruned"], "mask" in log[0].to_json()) == (1, False)
    assert log[0].before >= 0.8 > log[0].after
    assert true_patch().success_on(network, images, network.classes(images)) < 0.2


def test_a_round_that_may_prune_nothing_is_the_last(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    # The stop takes the first candidate, which prunes nothing; without an end four rounds would be told.
    monkeypatch.setattr("clp_plugin.surrogate.rounds.best_stop", lambda _tried, **_options: 0)
    network = planted(backdoor=True)
    mask, log = prune_in_rounds(network, fuse(network.network, SHAPE), found, rounds=4)
    assert len(mask) == 0
    assert [one.pruned for one in log] == [0]


def test_the_search_leaves_the_network_as_it_was(found: Found) -> None:
    network, fresh = planted(backdoor=True), planted(backdoor=True)
    view = fuse(network.network, SHAPE)
    try_masks(network, [Mask({LAYER: np.ones(6, dtype=bool)})], found.agreeing, found.held_out, found.like_training)
    gain_over_cost(network, found.fit, found.agreeing, [layer.name for layer in view.layers if layer.kind == "fused"])
    for one, other in zip(network.network.state_dict().values(), fresh.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert all(parameter.grad is None for parameter in network.network.parameters())
    assert not network.network.norm._forward_hooks


def test_the_same_seed_gives_the_same_bits(found: Found) -> None:
    again = find_surrogates(planted(backdoor=True), SHAPE, count=COUNT)
    assert torch.equal(again.fit, found.fit)
    assert torch.equal(again.patch.values, found.patch.values)
    assert torch.equal(again.pattern.values, found.pattern.values)
    other = synthesise(planted(backdoor=True), SHAPE, count=COUNT, steps=1, seed=5)
    assert not torch.equal(other, synthesise(planted(backdoor=True), SHAPE, count=COUNT, steps=1, seed=6))


def test_synthesised_images_match_the_statistics_better_than_their_start() -> None:
    network = planted(backdoor=False)
    start = dead_leaves(COUNT, SHAPE, seed=0)
    images = synthesise(network, SHAPE, count=COUNT, class_weight=0.0)
    before, after = (statistics_distance(network, one)[0].item() for one in (start, images))
    assert after < before
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_statistics_distance_is_zero_on_the_images_that_the_norm_remembers() -> None:
    network = planted(backdoor=False)
    images = dead_leaves(30, SHAPE, seed=1)
    norm = network.network.norm
    maps = network.network.conv(images).detach().transpose(0, 1).flatten(1)
    norm.running_mean.copy_(maps.mean(1))
    norm.running_var.copy_(maps.var(1, unbiased=False))
    assert statistics_distance(network, images)[0].item() == pytest.approx(0.0, abs=1e-8)
    norm.running_mean.add_((norm.running_var + norm.eps).sqrt())  # every mean one standard deviation away
    assert statistics_distance(network, images)[0].item() == pytest.approx(1.0, rel=1e-4)


def test_the_gradient_of_the_patch_search_is_that_of_finite_differences() -> None:
    double = planted(backdoor=True).network.double()
    network = PixelNetwork(double, (0.0,) * 3, (1.0,) * 3)
    images = dead_leaves(2, SHAPE, seed=3).double()
    patches = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])

    def loss(values: torch.Tensor) -> torch.Tensor:
        logits = double((stamped(images, values, [(0, 0), (13, 5)]) - 0.0) / 1.0)
        return shortfall(logits, labels).sum()

    assert torch.autograd.gradcheck(loss, (patches,), eps=1e-6, atol=1e-5)
    assert network.logits(images).dtype == torch.float32


def test_stamping_puts_each_patch_at_its_place_and_nothing_elsewhere() -> None:
    images = dead_leaves(2, SHAPE, seed=3)
    patches = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    shown = stamped(images, patches, [(1, 2), (12, 12)])
    expected = images.repeat(2, 1, 1, 1)
    expected[:2, :, 1:5, 2:6] = 0
    expected[2:, :, 12:16, 12:16] = 1
    assert torch.equal(shown, expected)


def test_gain_over_cost_of_a_linear_head_is_what_was_written_down() -> None:
    """One layer, read by a linear head: the effect of removing a channel is exact."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, affine=True), nn.Flatten(), nn.Linear(3, 2)
    ).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1))
        model[1].running_var.fill_(1 - model[1].eps)
        model[3].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.0]]))
        model[3].bias.zero_()
    network = PixelNetwork(model, (0.0,), (1.0,))
    images = torch.full((1, 1, 1, 1), 0.5)  # outputs .5, 1, 1.5; logits .5, .25: class 0
    trigger = Surrogate("pattern", 1, torch.full((1, 1, 1), 0.5), None, 1.0, {})  # outputs 1, 2, 3
    values = gain_over_cost(network, images, [trigger], ["1"])["1"]
    gains, costs = np.array([-1.0, 0.5, 0.0]), np.array([0.5, -0.25, 0.0])
    assert values == pytest.approx(gains / (np.abs(costs) + 0.25))
    assert ranked({"1": values}) == [("1", 1)]


def test_prefix_masks_hold_the_first_channels_of_the_order() -> None:
    order = [("a", 1), ("b", 0), ("a", 0)]
    masks = prefix_masks(order, {"a": 2, "b": 1})
    assert [mask.indices() for mask in masks] == [{}, {"a": [1]}, {"a": [1], "b": [0]}, {"a": [0, 1], "b": [0]}]


def mean_cosine(logits: torch.Tensor, others: torch.Tensor) -> float:
    """By hand; 0 for an image whose logits are all the same."""
    found = []
    for a, b in zip(logits.double().tolist(), others.double().tolist(), strict=True):
        a, b = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]
        norms = math.hypot(*a) * math.hypot(*b)
        found.append(sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms > 1e-12 else 0.0)
    return sum(found) / len(found)


def test_agreement_falls_though_every_image_keeps_its_class() -> None:
    class Logits(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.flatten(1))

    def network(rows: list[list[float]]) -> PixelNetwork:
        linear = Logits(3, 3, bias=False)
        linear.weight.data = torch.tensor(rows)
        return PixelNetwork(linear, (0.0,), (1.0,))

    images = torch.eye(3).reshape(3, 3, 1, 1)
    before = network([[4.0, 1.0, 0.0], [0.0, 4.0, 0.0], [1.0, 0.0, 4.0]])
    scaled = network([[9.0, 3.0, 1.0], [1.0, 9.0, 1.0], [3.0, 1.0, 9.0]])  # twice as much and 1 more
    changed = network([[4.0, 0.0, 1.0], [3.9, 4.0, 3.0], [0.0, 1.0, 4.0]])
    known = before.answers(images)
    assert torch.equal(changed.classes(images), before.classes(images))
    assert agreement(before, images, known) == 1.0
    assert agreement(scaled, images, known) == pytest.approx(1.0)
    assert agreement(changed, images, known) == pytest.approx(mean_cosine(changed.answers(images), known), abs=1e-6)
    assert agreement(changed, images, known) < 0.9


def test_the_stop_is_that_of_an_exhaustive_search_with_masks_applied_by_hand(found: Found) -> None:
    network = planted(backdoor=True)
    masks = [Mask({LAYER: np.array([bool(bits >> k & 1) for k in range(6)])}) for bits in range(64)]
    tried = try_masks(network, masks, [found.patch], found.held_out, found.like_training)
    own, before = network.classes(found.held_out), network.answers(found.like_training)
    left, values = [], []
    for mask in masks:
        undo = apply_mask(network.network, mask)
        fooled = network.classes(found.patch.attach(found.held_out))[own != TARGET] == TARGET
        alike = mean_cosine(network.answers(found.like_training), before)
        left.append(fooled.double().mean().item())
        values.append(left[-1] - alike)
        undo.undo()
    assert left[best_stop(tried)] <= 0.2
    assert tried[best_stop(tried)].pruned == min(len(m) for m, rate in zip(masks, left, strict=True) if rate <= 0.2)
    unreachable = best_stop(tried, enough=-1.0)
    assert values[unreachable] == pytest.approx(min(values))
    smallest = min(len(mask) for mask, value in zip(masks, values, strict=True) if value < min(values) + 1e-6)
    assert tried[unreachable].pruned == smallest


def test_of_equal_stops_the_one_that_prunes_least_is_taken() -> None:
    assert best_stop([Tried(0, 0.9, 1.0), Tried(5, 0.3, 0.9), Tried(3, 0.4, 1.0), Tried(9, 0.3, 0.2)]) == 2


def test_no_more_is_pruned_once_the_trigger_is_gone() -> None:
    tried = [Tried(0, 1.0, 1.0), Tried(4, 0.3, 1.0), Tried(10, 0.15, 0.9), Tried(15, 0.0, 0.9)]
    assert best_stop(tried) == 2
    assert best_stop(tried, enough=0.3) == 1
    assert best_stop(tried, enough=0.1) == 3


def test_agreement_of_rounds_is_with_the_network_before_all_of_them(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clp_plugin.surrogate.rounds.best_stop", lambda tried, **_options: len(tried) - 1)
    network = planted(backdoor=True)
    before = network.answers(found.like_training)
    _, log = prune_in_rounds(network, fuse(network.network, SHAPE), found, rounds=4, enough=0.0)
    fresh, seen = planted(backdoor=True), []
    for one in log:
        apply_mask(fresh.network, one.mask)
        seen.append(mean_cosine(fresh.answers(found.like_training), before))
    assert [one.agreement for one in log] == pytest.approx(seen)
    assert len(log) > 1
    assert seen[0] < 1.0


def test_a_candidate_below_the_least_agreement_is_not_taken() -> None:
    tried = [Tried(0, 1.0, 1.0), Tried(2, 0.6, 0.9), Tried(9, 0.0, 0.7)]
    assert best_stop(tried) == 2
    assert best_stop(tried, least_agreement=0.8) == 1
    assert best_stop(tried, least_agreement=0.95) == 0
    assert best_stop([Tried(0, 0.9, 0.7), Tried(2, 0.1, 0.6)], least_agreement=0.8) == 0


def test_a_class_is_as_easy_as_its_best_place_however_bad_its_others() -> None:
    starts = [(0, (0, 0)), (1, (1, 1)), (0, (2, 2)), (2, (3, 3)), (1, (4, 4))]
    reached = [9.0, 3.0, 0.0, 4.0, 2.0]
    assert easiest(starts, reached, count=2) == [(0, (2, 2)), (1, (4, 4))]


def test_a_patch_is_fitted_on_every_image_and_not_on_the_first_ones() -> None:
    seen: set[float] = set()

    class Watched(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.update(images[:, 0, 0, 0].tolist())  # the corner, which the patch does not cover
            return super().forward(images.flatten(1))

    images = (torch.arange(12.0) / 16).reshape(12, 1, 1, 1).expand(12, 3, 8, 8)
    fit_patches(PixelNetwork(Watched(192, 2), (0.0,), (1.0,)), images, [(1, (4, 4))], 3, count=6, steps=2)
    assert seen == set(images[:, 0, 0, 0].tolist())


def test_a_network_without_batchnorm_statistics_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    view = fuse(model, SHAPE)
    with pytest.raises(ConfigError, match="BatchNorm that keeps running statistics"):
        choose_u(view, score(view), input_shape=SHAPE)


def test_of_very_many_classes_the_nearest_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clp_plugin.surrogate.finding.MAX_CLASSES", 2)
    few = find_surrogates(planted(backdoor=True), SHAPE, count=10)
    assert few.classes == 3
    assert len(few.searched) == 2
    assert set(few.patch.losses) <= set(few.searched)
    assert "2 of 3 classes were searched, those of the largest mean logit" in few.limits[0]


def test_a_normalised_network_is_searched_in_the_same_pixels() -> None:
    network = planted(backdoor=True)
    images = dead_leaves(4, SHAPE, seed=2)
    behind = PixelNetwork(network.network, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    shifted = (images - torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).reshape(
        1, 3, 1, 1
    )
    assert torch.allclose(behind.logits(images), network.network(shifted))
