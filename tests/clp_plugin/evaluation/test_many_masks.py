"""Sharing layers between masks changes no bit of any output, whatever the network does, and saves the work it promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fake_records import fake_record, random_images, shaken
from tiny_nets import CASES
from torch import nn

from clp_plugin.evaluation import prefix_replay
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.evaluation.prefix_replay import PrefixReplay, shared_prefix, watched
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import masked
from clp_plugin.networks.outputs import logits_of
from clp_plugin.types import Mask


def random_masks(model: nn.Module, shape: tuple[int, ...], count: int = 6) -> list[Mask]:
    """Neighbours share most layers; one prunes nothing."""
    layers = [layer for layer in fuse(model, shape).layers if layer.kind != "head"]
    rng = np.random.default_rng(0)
    masks = [Mask({})]
    for _ in range(count):
        changed = dict(masks[-1].pruned)
        for layer in rng.permutation(np.array(layers, dtype=object))[:2]:
            changed[layer.name] = rng.random(layer.channels) < 0.4
        masks.append(Mask(changed))
    return masks


@pytest.mark.parametrize("name", sorted(CASES))
def test_replayed_outputs_are_bit_equal_to_plain_runs(name: str) -> None:
    chosen = CASES[name]
    model = shaken(chosen.build())
    masks = random_masks(model, chosen.shape)
    found: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(masks))}
    batches = [torch.randn(3, *chosen.shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    memory = PrefixReplay()
    for batch in batches:
        memory.new_batch(10_000)
        changed: set[str] | None = None
        for (before, mask), index in zip(pairwise([None, *masks]), range(len(masks)), strict=False):
            if before is not None:
                one, other = before.indices(), mask.indices()
                changed = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
            unchanged = 0 if changed is None else shared_prefix(memory.calls, changed)
            pruned = masked(model, mask)
            with torch.no_grad(), watched(pruned, memory):
                output = memory.run(pruned, batch, unchanged)
            assert torch.equal(output, logits_of(pruned(batch))), (index, unchanged)
            found[index].append(output)
    assert any(not torch.equal(found[0][0], found[i][0]) for i in range(1, len(masks)))


@pytest.mark.parametrize(
    "name", ["residual_in_place", "pre_activation", "dense", "squeeze_and_excitation", "shared_block"]
)
def test_metrics_of_all_masks_are_those_of_each_masked_copy(name: str) -> None:
    chosen = CASES[name]
    model = shaken(chosen.build())
    record = replace(fake_record(model, size=chosen.shape[1]), clean=random_images(40, size=chosen.shape[1], classes=3))
    masks = random_masks(model, chosen.shape)
    for mask, judged in zip(masks, evaluate_masks(model, record, masks, batch_size=16), strict=True):
        assert judged.metrics == evaluate(masked(model, mask), record, batch_size=16)


def chain(depth: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def computed(model: nn.Module) -> dict[str, int]:
    """How often each convolution really computes."""
    times: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def forward(x: torch.Tensor, name: str = name, plain: object = module._conv_forward) -> torch.Tensor:
                times[name] = times.get(name, 0) + 1
                module = model.get_submodule(name)
                return plain(x, module.weight, module.bias)  # type: ignore[operator]

            module.forward = forward  # type: ignore[method-assign]
    return times


def test_layers_before_the_first_difference_are_computed_once_a_batch() -> None:
    model = shaken(chain(4))
    times = computed(model)
    channel = np.array([True, False, False])
    masks = [Mask({}), Mask({"3": channel}), Mask({"2": channel}), Mask({"2": channel, "3": channel})]
    record = replace(fake_record(model), clean=random_images(40, classes=3))
    evaluate_masks(model, record, masks, batch_size=64)
    # One trial run, then two batches (clean, triggered): layers 0 and 1 once, 2 twice, 3 for each of four masks.
    assert times == {"0": 1 + 2, "1": 1 + 2, "2": 1 + 4, "3": 1 + 8}


def test_nothing_stays_on_the_network_afterwards() -> None:
    model = shaken(chain(2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate_masks(model, replace(fake_record(model), clean=random_images(40, classes=3)), [Mask({})])
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_small_memory_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(CASES["pre_activation"].build())
    shape = CASES["pre_activation"].shape
    record = replace(fake_record(model, size=shape[1]), clean=random_images(40, size=shape[1], classes=3))
    masks = random_masks(model, shape)
    wanted = evaluate_masks(model, record, masks)
    for limit in (0, 5_000, 50_000):
        monkeypatch.setattr(prefix_replay, "KEEP_BYTES", limit)
        assert evaluate_masks(model, record, masks) == wanted


def test_progress_counts_batches_under_masks() -> None:
    model = shaken(chain(1))
    record = replace(fake_record(model), clean=random_images(40, classes=3))
    seen: list[tuple[int, int]] = []
    evaluate_masks(model, record, [Mask({})] * 3, batch_size=8, progress=lambda done, total: seen.append((done, total)))
    total = 3 * (5 + -(-len(record.triggered.images) // 8))
    assert seen == [(k + 1, total) for k in range(total)]


def test_a_changed_module_that_is_never_called_by_itself_shares_nothing() -> None:
    assert shared_prefix(["a", "b"], {"b"}) == 1
    assert shared_prefix(["a", "b"], set()) == 2
    assert shared_prefix(["a", "b"], {"b", "elsewhere"}) == 0


def test_a_weight_that_two_modules_share_changes_with_both() -> None:
    model = shaken(chain(3))
    first, second = model.get_submodule("0"), model.get_submodule("1")
    second.weight, second.bias = first.weight, first.bias
    channel = np.array([True, False, False])
    masks = [Mask({}), Mask({"1": channel}), Mask({"2": channel})]
    record = replace(fake_record(model), clean=random_images(40, classes=3))
    together = evaluate_masks(model, record, masks)
    alone = [evaluate_masks(masked(model, mask), record, [Mask({})])[0] for mask in masks]
    assert [judged.clean_loss for judged in together] == [judged.clean_loss for judged in alone]
    assert len({judged.clean_loss for judged in alone}) == 3
