"""Scores against SVDs channel by channel, UCLC against hand products, damage against clear errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from tiny_nets import CASES, Case, Wired, classify, conv
from torch import nn

from clp_plugin.errors import ConfigError, ScoreError
from clp_plugin.fusion.layers import fuse
from clp_plugin.networks.architectures import build_model
from clp_plugin.scoring.lipschitz import score
from clp_plugin.scoring.uclc import uclc
from clp_plugin.selection.outliers import select

Build = Callable[..., nn.Module]
SHAPE = (3, 8, 8)


def published(model: nn.Module) -> dict[str, np.ndarray]:
    """The published rule, written again: last Conv2d seen, no eps, one SVD a channel."""
    last, scores = None, {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif isinstance(module, nn.BatchNorm2d):
            weight = last.weight.detach().double().numpy()
            gain = (module.weight.detach().double() / module.running_var.double().sqrt()).abs().numpy()
            scores[name] = np.array(
                [
                    np.linalg.svd(weight[k].reshape(weight.shape[1], -1) * gain[k], compute_uv=False)[0]
                    for k in range(len(gain))
                ]
            )
    return scores


def by_loops(model: nn.Module, case: Case) -> dict[str, np.ndarray]:
    """sigma_k of simple layers (channel k of the norm is filter k of its one convolution)."""
    modules, scores = dict(model.named_modules()), {}
    for name, (kind, convs) in case.layers.items():
        module = modules[name]
        weight = modules[convs[0]].weight.detach().double() if convs else None
        if kind == "fused":
            gain = (module.running_var.double() + module.eps) ** -0.5
            gain = gain * module.weight.detach().double().abs() if module.weight is not None else gain
        else:
            gain = torch.ones(len(weight)).double() if convs else None
        if kind == "diagonal":
            scores[name] = (
                module.weight.detach().double().abs() / (module.running_var.double() + module.eps) ** 0.5
            ).numpy()
            continue
        scores[name] = np.array(
            [float(torch.linalg.svdvals(w.reshape(len(w), -1))[0] * g) for w, g in zip(weight, gain, strict=True)]
        )
    return scores


SIMPLE = [
    "plain", "strided_dilated_circular", "sync_batchnorm", "norm_without_affine", "frozen_batchnorm", "residual_in_place",
    "pre_activation", "depthwise_and_grouped", "one_dimensional", "three_dimensional", "shared_conv", "shared_norm",
    "no_norm", "one_channel", "squeeze_and_excitation", "convolutional_head", "auxiliary_head", "depends_on_data",
]  # fmt: skip


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_scores_equal_svds_channel_by_channel(name: str, dtype: torch.dtype, build: Build) -> None:
    model = build(name).to(dtype)
    found = score(fuse(model, CASES[name].shape))
    for layer, expected in by_loops(model, CASES[name]).items():
        np.testing.assert_allclose(found.sigma[layer], expected, rtol=1e-5, err_msg=layer)
        assert found.sigma[layer].dtype == np.float64
    assert found.heads == {layer for layer, (kind, _) in CASES[name].layers.items() if kind == "head"}


@pytest.mark.parametrize("kind", ["paper", "relative"])
def test_every_tiny_net_gets_finite_scores_and_stays_as_it_was(kind: str, case: Case, net: nn.Module) -> None:
    net.train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    view = fuse(net, case.shape)
    found = score(view, score=kind)
    score(view, norm="exact")
    assert list(found.sigma) == [layer.name for layer in view.layers]
    assert all(np.isfinite(s).all() and (s >= 0).all() and len(s) for s in found.sigma.values())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_channels_through_a_concatenation_take_their_own_filter(build: Build) -> None:
    model = build("dense")
    found = score(fuse(model, SHAPE)).sigma["bn3"]
    filters = [w for c in (model.conv1, model.conv2, model.conv3) for w in c.weight.detach().double()]
    sigma = [float(torch.linalg.svdvals(w.flatten(1))[0]) for w in filters] + [1.0, 1.0]
    gain = (model.bn3.weight.double().abs() / (model.bn3.running_var.double() + model.bn3.eps) ** 0.5).detach().numpy()
    np.testing.assert_allclose(found, np.array(sigma) * gain, rtol=1e-5)


def test_parametrized_and_standardized_kernels_count_as_they_are_used(build: Build) -> None:
    for name in ("parametrized", "weight_standardized"):
        model = build(name)
        used = (model.conv2.used() if name == "weight_standardized" else model.conv2.weight).detach().double()
        gain = (model.bn2.weight.double().abs() / (model.bn2.running_var.double() + model.bn2.eps) ** 0.5).detach()
        expected = torch.linalg.svdvals(used.flatten(2))[:, 0] * gain
        np.testing.assert_allclose(score(fuse(model, SHAPE)).sigma["bn2"], expected.numpy(), rtol=1e-5)


def test_half_of_a_linear_map_without_bias_under_a_norm() -> None:
    net = Wired(
        lambda n, x: n.fc(n.bn(n.wide(x.flatten(1)).chunk(2, 1)[1]).relu()), wide=nn.Linear(12, 8, bias=False),
        bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 2),
    ).eval()  # fmt: skip
    found = score(fuse(net, (3, 2, 2))).sigma["bn"]
    rows = net.wide.weight.detach().double()[4:].norm(dim=1)
    np.testing.assert_allclose(found, (rows / (1 + net.bn.eps) ** 0.5).numpy(), rtol=1e-5)


def test_eps_is_part_of_the_score_and_a_dead_channel_is_finite(build: Build) -> None:
    model = build("plain")
    before = score(fuse(model, SHAPE)).sigma["bn1"]
    model.bn1.running_var[0] = 0.0
    dead = score(fuse(model, SHAPE)).sigma["bn1"]
    kernel = float(torch.linalg.svdvals(model.conv1.weight[0].detach().double().flatten(1))[0])
    assert dead[0] == pytest.approx(kernel * float(model.bn1.weight.detach()[0].abs()) / model.bn1.eps**0.5, rel=1e-5)
    np.testing.assert_array_equal(dead[1:], before[1:])
    model.bn1.eps = 3.0
    assert (score(fuse(model, SHAPE)).sigma["bn1"] < before).all()


def _set(path: str, value: float) -> Callable[[nn.Module], None]:
    def damage(model: nn.Module) -> None:
        module, _, tensor = path.rpartition(".")
        getattr(model.get_submodule(module), tensor).data.view(-1)[1] = value

    return damage


@pytest.mark.parametrize("kind", ["paper", "relative"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["conv2.weight", "bn2.weight"])
def test_damaged_weight_names_its_layer(where: str, value: float, kind: str, build: Build) -> None:
    model = build("plain")
    _set(where, value)(model)
    view = fuse(model, SHAPE)
    with pytest.raises(ScoreError, match=r"(?s)'bn2'.*NaN or Inf"):
        score(view, score=kind)


@pytest.mark.parametrize("value", [float("nan"), -1.0])
@pytest.mark.parametrize(("net", "layer"), [("plain", "bn2"), ("pre_activation", "bn2")])
def test_damaged_statistics_name_their_layer(net: str, layer: str, value: float, build: Build) -> None:
    model = build(net)
    _set(f"{layer}.running_var", value)(model)
    with pytest.raises(ScoreError, match=f"'{layer}'"):
        score(fuse(model, SHAPE))


@pytest.mark.parametrize("where", ["bn2.running_mean", "bn2.bias", "conv2.bias", "fc.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damage_outside_the_kernel_names_its_layer_too(where: str, value: float, build: Build) -> None:
    model = build("plain")
    _set(where, value)(model)
    with pytest.raises(ScoreError, match="'fc'" if where == "fc.bias" else "'bn2'"):
        score(fuse(model, SHAPE))


def test_damage_is_found_with_the_exact_norm(build: Build) -> None:
    model = build("plain")
    _set("conv2.weight", float("nan"))(model)
    with pytest.raises(ScoreError, match="'bn2'"):
        score(fuse(model, SHAPE), norm="exact")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "builtin:preactresnet18"])
def test_published_pairing_prunes_exactly_the_published_set(spec: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(spec, num_classes=10, **({"width": 16} if spec.startswith("builtin") else {}))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.01, 2)
                module.weight.data.normal_().exp_()
    expected = published(model)
    view = fuse(model, (3, 32, 32), pairing="registration")
    found = score(view)
    assert list(found.sigma) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found.sigma[name], values, rtol=1e-5)
    sizes = []
    for u in (0.5, 1, 1.5, 2, 3, 4):
        rule = {n: np.flatnonzero(v > v.mean() + u * v.std(ddof=1)).tolist() for n, v in expected.items()}
        assert select(found, u).indices() == {n: pruned for n, pruned in rule.items() if pruned}
        sizes.append(len(select(found, u)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] > 0
    differs = select(found, 1) != select(score(fuse(model, (3, 32, 32))), 1)
    assert differs  # unbiased deviation and eps; on the pre-activation network the pairs too


def test_published_pairing_goes_wrong_on_pre_activation_networks() -> None:
    """Where data flow and registration differ, so do the scores: bn2 of a block is diagonal or fed by another conv."""
    model = build_model("builtin:preactresnet18", num_classes=10, width=8)
    flow, rule = (fuse(model, (3, 32, 32), pairing=p) for p in ("dataflow", "registration"))
    assert {layer.name for layer in flow.layers if layer.norm} == {layer.name for layer in rule.layers}
    wrong = [layer.name for layer in rule.layers if flow.layer(layer.name).conv != layer.conv]
    assert "layer1.1.bn1" in wrong
    assert "layer1.0.bn2" not in wrong


def test_parity_mode_has_no_other_score(build: Build) -> None:
    view = fuse(build("plain"), SHAPE, pairing="registration")
    with pytest.raises(ConfigError, match="relative"):
        score(view, score="relative")
    with pytest.raises(ConfigError, match="exact"):
        score(view, norm="exact")
    with pytest.raises(ConfigError, match="data flow"):
        uclc(view, score(view))


def fused_norm(convolution: nn.Module, norm: nn.Module | None) -> float:
    rows = convolution.weight.detach().double().flatten(1)
    if norm is not None:
        rows = rows * (norm.weight.detach().double().abs() / (norm.running_var.double() + norm.eps) ** 0.5)[:, None]
    return float(torch.linalg.svdvals(rows)[0])


def test_uclc_of_a_chain_is_sigma_times_the_norms_before_it(build: Build) -> None:
    model = build("plain")
    view = fuse(model, SHAPE)
    scores = score(view)
    found = uclc(view, scores)
    first, second = fused_norm(model.conv1, model.bn1), fused_norm(model.conv2, model.bn2)
    np.testing.assert_allclose(found["bn1"], scores.sigma["bn1"], rtol=1e-6)
    np.testing.assert_allclose(found["bn2"], scores.sigma["bn2"] * first, rtol=1e-6)
    np.testing.assert_allclose(found["fc"], scores.sigma["fc"] * first * second, rtol=1e-6)


def test_uclc_leaves_parallel_branches_out() -> None:
    net = Wired(
        lambda n, x: classify(n, n.bn1(n.conv1(x)).relu() + n.bn2(n.conv2(x)).relu()),
        conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), conv2=conv(3, 4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(4, 2),
    ).eval()  # fmt: skip
    view = fuse(net, SHAPE)
    scores = score(view)
    found = uclc(view, scores)
    np.testing.assert_allclose(found["bn2"], scores.sigma["bn2"])


def test_uclc_counts_a_convolution_with_two_norms_once() -> None:
    net = Wired(
        lambda n, x: classify(n, torch.cat([n.bn1(n.conv1(x)).relu(), n.bn2(n.conv1(x)).relu()], 1)),
        conv1=conv(3, 4), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(8, 2),
    ).eval()  # fmt: skip
    split = Wired(
        lambda n, x: classify(n, torch.cat([n.bn1(y := n.conv1(x)).relu(), n.bn2(y).relu()], 1)),
        **dict(net.named_children()),
    ).eval()
    for model in (net, split):
        view = fuse(model, SHAPE)
        scores = score(view)
        np.testing.assert_allclose(uclc(view, scores)["bn2"], scores.sigma["bn2"])


def test_uclc_counts_a_convolution_that_passes_by_its_norm(build: Build) -> None:
    """conv1 is added to conv2's branch as it is: before bn2 lie bn1's layer and conv2; conv1 is part of bn1's layer."""
    model = build("pre_activation")
    view = fuse(model, SHAPE)
    scores = score(view)
    expected = scores.sigma["bn2"] * fused_norm(model.conv1, model.bn1) * fused_norm(model.conv2, None)
    np.testing.assert_allclose(uclc(view, scores)["bn2"], expected, rtol=1e-6)


def test_uclc_ranks_as_sigma_does_and_heads_are_never_pruned() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    view = fuse(model, (3, 64, 64))
    scores = score(view)
    for name, values in uclc(view, scores).items():
        assert np.array_equal(np.argsort(values, kind="stable"), np.argsort(scores.sigma[name], kind="stable"))
    assert scores.heads == {"fc"}
    assert "fc" not in select(scores, 0.0).pruned
