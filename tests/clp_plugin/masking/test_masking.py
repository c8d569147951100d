"""Silent channels are exactly 0, undoing is exact to the bit, masks replay, misfits change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_nets import CASES, Case
from torch import nn

from clp_plugin.errors import MaskError
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import apply_mask, load_mask, masked, save_mask
from clp_plugin.types import Mask

Build = Callable[..., nn.Module]


def bits(model: nn.Module) -> dict[str, bytes]:
    """NaN and -0.0 count too, so bytes and not ``==``."""
    return {
        name: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, t in model.state_dict().items()
    }


def some_mask(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Mask:
    """About half of the channels of every prunable layer that stores its weight; at least channel 0."""
    rng = np.random.default_rng(seed)
    pruned = {}
    for layer in fuse(model, shape).layers:
        if layer.kind != "head":
            pruned[layer.name] = rng.random(layer.channels) < 0.5
            pruned[layer.name][0] = True
    return Mask(pruned)


def outputs(model: nn.Module, names: list[str], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_hook(lambda _m, _a, out, n=n: found.update({n: out.clone()})) for n in names]
    with torch.no_grad():
        model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    return found


def test_pruned_channels_answer_exactly_zero_and_the_others_do_not(case: Case, build: Build) -> None:
    model = build(case.name)
    mask = some_mask(model, case.shape)
    repaired = masked(model, mask)
    for name, out in outputs(repaired, list(mask.pruned), case.shape).items():
        pruned = torch.from_numpy(mask.pruned[name])
        assert (out[:, pruned] == 0).all(), name
        assert (out[:, ~pruned] != 0).flatten(2).any(2).all() if out.ndim > 2 else True, name


def test_undo_restores_every_bit(case: Case, net: nn.Module) -> None:
    before = bits(net)
    undo = apply_mask(net, some_mask(net, case.shape))
    assert bits(net) != before
    undo.undo()
    assert bits(net) == before
    undo.undo()
    assert bits(net) == before


def test_undo_restores_nan_and_negative_zero(build: Build) -> None:
    model = build("plain")
    model.bn1.weight.data[:2] = torch.tensor([float("nan"), -0.0])
    before = bits(model)
    with apply_mask(model, Mask({"bn1": np.array([True, True, False, False])})):
        assert model.bn1.weight[:2].tolist() == [0, 0]
    assert bits(model) == before


def test_only_named_channels_change(build: Build) -> None:
    model = build("no_norm")
    repaired = masked(model, Mask({"conv1": np.array([False, True, False, False]), "conv2": np.zeros(6, bool)}))
    assert (repaired.conv1.weight[1] == 0).all()
    assert repaired.conv1.bias[1] == 0
    keep = [0, 2, 3]
    assert torch.equal(repaired.conv1.weight[keep], model.conv1.weight[keep])
    assert torch.equal(repaired.conv1.bias[keep], model.conv1.bias[keep])
    changed = {name for name, b in bits(repaired).items() if b != bits(model)[name]}
    assert changed == {"conv1.weight", "conv1.bias"}


def test_copy_leaves_the_model_alone_and_is_bare(build: Build) -> None:
    model = build("plain")
    before = bits(model)
    repaired = masked(nn.DataParallel(model), some_mask(model, (3, 8, 8)))
    assert type(repaired) is type(model)
    assert bits(model) == before
    assert bits(repaired) != before


def test_wrapped_model_is_masked_in_place(build: Build) -> None:
    model = build("plain")
    with apply_mask(nn.DataParallel(model), Mask({"bn1": np.array([True] * 4)})):
        assert (model.bn1.weight == 0).all()
    assert (model.bn1.weight != 0).all()


def test_transposed_grouped_filters_are_columns_of_their_group() -> None:
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    repaired = masked(nn.Sequential(conv), Mask({"0": np.arange(6) == 4}))
    out = repaired(torch.randn(1, 4, 5, 5))
    assert [k for k in range(6) if (out[:, k] == 0).all()] == [4]
    assert int((repaired[0].weight != conv.weight).sum()) == 2 * 9


def test_norm_without_bias_can_be_pruned() -> None:
    try:
        norm = nn.BatchNorm2d(3, bias=False)
    except TypeError:
        pytest.skip("this torch has no BatchNorm without bias")
    norm.running_mean = torch.ones(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm).eval()
    before = bits(model)
    undo = apply_mask(model, Mask({"1": np.array([True, False, False])}))
    out = model(torch.randn(1, 3, 4, 4))
    assert (out[:, 0] == 0).all()
    assert (out[:, 1:] != 0).all()
    undo.undo()
    assert bits(model) == before


def test_saved_mask_replays_on_a_fresh_copy(tmp_path: Path, case: Case, build: Build) -> None:
    model = build(case.name)
    mask = some_mask(model, case.shape)
    save_mask(mask, tmp_path / "mask.json")
    replayed = load_mask(tmp_path / "mask.json")
    assert replayed == mask
    assert bits(masked(build(case.name), replayed)) == bits(masked(model, mask))


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"nothing": [True]}, "another model.*'nothing'"),
        ({"bn2": [True] * 5}, "'bn2' has 6 channels, the mask has 5"),
        ({"bn2": [False] * 5}, "6 channels"),
        ({"fc": [True] * 3}, "'fc'.*Linear"),
        ({"bn2": [[True] * 6]}, "6 channels"),
    ],
)
def test_misfit_is_named_and_changes_nothing(pruned: dict[str, list[bool]], message: str, build: Build) -> None:
    model = build("plain")
    before = bits(model)
    with pytest.raises(MaskError, match=f"(?s){message}"):
        apply_mask(model, Mask({"bn1": np.ones(4, bool)} | {n: np.array(v) for n, v in pruned.items()}))
    assert bits(model) == before


def test_convolution_that_computes_its_weight_is_refused(build: Build) -> None:
    model = build("parametrized")
    before = bits(model)
    with pytest.raises(MaskError, match="parametrization"):
        apply_mask(model, Mask({"bn1": np.ones(4, bool), "conv1": np.ones(4, bool)}))
    assert bits(model) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 1}',
        '{"schema_version": 1, "layers": 3}',
        '{"schema_version": 99, "layers": {}}',
    ],
)
def test_damaged_mask_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mask.json"
    path.write_text(text)
    with pytest.raises(MaskError, match=r"mask\.json"):
        load_mask(path)


def test_missing_mask_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"none\.json"):
        load_mask(tmp_path / "none.json")


def test_mask_file_is_plain_json(tmp_path: Path) -> None:
    save_mask(Mask({"a": np.array([False, True])}), tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text()) == {
        "schema_version": 1, "layers": {"a": {"channels": 2, "pruned": [1]}}
    }  # fmt: skip


def test_half_precision_and_frozen_parameters(build: Build) -> None:
    model = build("plain").half()
    for p in model.parameters():
        p.requires_grad_(False)
    before = bits(model)
    with apply_mask(model, some_mask(model, CASES["plain"].shape)):
        assert model.bn1.weight[0] == 0
        assert model.bn1.weight.dtype == torch.float16
    assert bits(model) == before


def test_kept_bias_is_what_a_pruned_channel_puts_out_everywhere(case: Case, build: Build) -> None:
    model = build(case.name)
    mask = some_mask(model, case.shape)
    repaired = masked(model, mask, keep_bias=True)
    modules = dict(repaired.named_modules())
    for name, out in outputs(repaired, list(mask.pruned), case.shape).items():
        pruned = torch.from_numpy(mask.pruned[name])
        bias = getattr(modules[name], "bias", None)
        expected = torch.zeros(len(pruned)) if bias is None else bias.detach()
        there = out[:, pruned].movedim(1, -1)
        assert torch.equal(there, expected[pruned].expand_as(there)), name


def test_kept_bias_is_untouched_and_the_weights_come_back(case: Case, net: nn.Module) -> None:
    before = bits(net)
    with apply_mask(net, some_mask(net, case.shape), keep_bias=True):
        changed = {name for name, now in bits(net).items() if now != before[name]}
        assert changed
        assert not {name for name in changed if name.endswith("bias")}
    assert bits(net) == before
