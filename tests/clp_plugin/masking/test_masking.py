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
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune
from untouched import untouched

from clp_plugin.errors import MaskError
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import apply_mask, load_mask, masked, save_mask
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
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


def _parametrized(norm: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    return norm


class OffsetNorm(nn.BatchNorm2d):
    """Puts out a constant whatever its parameters are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class CenteredNorm(nn.BatchNorm2d):
    """Its weight is stored as the difference from 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.batch_norm(
            x, self.running_mean, self.running_var, None, None, False, 0.0, self.eps
        )


class BiasedConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - 0.5


def with_norm(norm: nn.Module) -> Callable[[Build], nn.Module]:
    def make(build: Build) -> nn.Module:
        model = build("plain")
        model.bn2 = norm
        return model.eval()

    return make


def with_conv(build: Build) -> nn.Module:
    model = build("no_norm")
    model.conv2 = BiasedConv(4, 6, 3)
    return model.eval()


HEARD: dict[str, tuple[Callable[[Build], nn.Module], str, str]] = {
    "norm with an offset": (with_norm(OffsetNorm(6)), "bn2", "a pruned channel puts out 1 on random inputs"),
    "norm centered at 1": (with_norm(CenteredNorm(6)), "bn2", "a pruned channel puts out"),
    "parametrized norm": (with_norm(_parametrized(nn.BatchNorm2d(6))), "bn2", "computes its weight"),
    "norm pruned by torch": (
        with_norm(prune.l1_unstructured(nn.BatchNorm2d(6), "weight", 3)),
        "bn2",
        "computes its weight",
    ),
    "convolution with an offset": (with_conv, "conv2", "a pruned channel puts out 0.5 on random inputs"),
    "quantization-aware block": (lambda build: build("quantization_aware_block"), "conv2.bn", "puts out nan"),
}


@pytest.mark.parametrize("name", HEARD)
def test_layer_that_is_heard_all_the_same_is_refused_and_nothing_changes(name: str, build: Build) -> None:
    make, layer, reason = HEARD[name]
    model = make(build)
    mask = Mask({layer: np.arange(6) < 2, next(iter(fuse(model, (3, 8, 8)).layers)).name: np.arange(4) < 1})
    with untouched(model), pytest.raises(MaskError, match=f"(?s)layer '{layer}'.*{reason}"):
        apply_mask(model, mask)


def test_norm_that_multiplies_its_weight_is_silenced(build: Build) -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight * 2, self.bias))

    model = with_norm(Scaled(6))(build)
    repaired = masked(model, Mask({"bn2": np.arange(6) < 2}), verify=(3, 8, 8))
    assert not outputs(repaired, ["bn2"], (3, 8, 8))["bn2"][:, :2].any()


MADE_HEARD = {
    "instance_norm": ("conv2", "native_batch_norm behind it undoes any scale"),
    "group_norm": ("conv2", "native_group_norm behind it undoes any scale"),
    "norm_without_statistics": ("conv2", "native_batch_norm behind it undoes any scale"),
    "layer_norm": ("conv2", "a LayerNorm behind it"),
    "norm_on_the_logits": ("bn2", "it puts out the logits"),
    "convolutions_with_norms_as_the_head": ("bn3", "it puts out the logits"),
    "scaled_before_its_norm": ("conv2", "mul between it and bn2 changes its kernel"),
}


@pytest.mark.parametrize("name", MADE_HEARD)
def test_masked_checks_itself_on_the_network(name: str, build: Build) -> None:
    model = build(name)
    layer, reason = MADE_HEARD[name]
    channels = np.arange(dict(model.named_modules())[layer].weight.shape[0]) < 1
    with pytest.raises(MaskError, match=f"layer '{layer}' cannot be silenced: {reason}"):
        masked(model, Mask({"bn1": np.arange(4) < 2, layer: channels}), verify=(3, 8, 8))
    masked(model, Mask({"bn1": np.arange(4) < 2}), verify=(3, 8, 8))


def test_every_mask_that_is_selected_passes_the_check(case: Case, net: nn.Module) -> None:
    scores = score(fuse(net, case.shape))
    with untouched(net):
        masked(net, select(scores, 0.0, layers=("fused", "diagonal", "conv")), verify=case.shape)


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
