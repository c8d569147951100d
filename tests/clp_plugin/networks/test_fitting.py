"""Weights fitted to a network: every adaptation is said, and loads exactly the tensors that a user would have put there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from clp_plugin.errors import CheckpointError
from clp_plugin.networks.fitting import fit_state_dict, width_wanted


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def prefixed(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.", "model._orig_mod.", "backbone.encoder."]
)
def test_any_common_prefix_is_read_below_and_said(prefix: str) -> None:
    target = net(1)
    fit = fit_state_dict(target, prefixed(prefix, net().state_dict()), where="x")
    assert same(target.state_dict(), net().state_dict())
    assert fit.adapted
    assert any(part in fit.adapted[0] for part in prefix.split(".") if part)
    assert fit.stored == {key: prefix + key for key in target.state_dict()}


def test_what_stands_beside_the_prefix_is_said() -> None:
    others = {**prefixed("netG.", nn.Conv2d(3, 4, 3).state_dict()), "mean": torch.zeros(3)}
    fit = fit_state_dict(net(1), {**others, **prefixed("netC.", net().state_dict())}, where="x")
    assert fit.adapted[0] == "read the keys below the prefix 'netC.'"
    assert fit.adapted[1] == "left out 3 tensors beside it: 'netG.', 'mean' (--key takes another part)"


def test_weights_that_fit_as_they_are_are_not_said_to_be_adapted() -> None:
    fit = fit_state_dict(net(1), net().state_dict(), where="x")
    assert fit.adapted == ()
    assert fit.stored == {key: key for key in net().state_dict()}


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda model: nn.Sequential(nn.Identity(), model)],
    ids=["parallel", "compiled", "sequential"],
)
def test_prefixes_on_the_networks_side_are_put_before_the_keys(wrap: Callable[[nn.Module], nn.Module]) -> None:
    target = net(1)
    fit_state_dict(wrap(target), net().state_dict(), where="x")
    assert same(target.state_dict(), net().state_dict())


def test_a_part_in_data_parallel_is_looked_through() -> None:
    class Split(nn.Module):
        def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
            super().__init__()
            self.features, self.fc = wrap(net()), nn.Linear(2, 2)

    source, target = Split(nn.DataParallel), Split(lambda module: module)
    fit_state_dict(target, source.state_dict(), where="x")
    assert same(target.fc.state_dict(), source.fc.state_dict())


def test_an_averaged_model_fits_the_model_that_it_averages() -> None:
    averaged, target = torch.optim.swa_utils.AveragedModel(net()), net(1)
    fit = fit_state_dict(target, averaged.state_dict(), where="x")
    assert same(target.state_dict(), net().state_dict())
    assert any("'n_averaged'" in phrase for phrase in fit.adapted)


@pytest.mark.parametrize(
    "extra",
    [
        {"total_ops": torch.zeros(1).double(), "0.total_params": torch.zeros(1).double()},
        {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)},
        {"criterion.weight": torch.ones(2), "projector.0.weight": torch.ones(9, 9)},
        {"0.index": torch.zeros(64, 64, dtype=torch.long)},
    ],
    ids=["counters", "normalization", "modules of their own", "integers"],
)
def test_keys_that_no_module_wants_are_left_out_and_said(extra: dict[str, Tensor]) -> None:
    target = net(1)
    fit = fit_state_dict(target, {**net().state_dict(), **extra}, where="x")
    assert same(target.state_dict(), net().state_dict())
    assert all(repr(key) in fit.adapted[-1] for key in extra)


def test_a_larger_network_of_the_same_family_does_not_fit() -> None:
    """All of ResNet-18's keys and shapes are among ResNet-34's."""
    large = torchvision.models.resnet34(num_classes=3).state_dict()
    with pytest.raises(CheckpointError, match=r"layer1\.2\.conv1\.weight.*the architecture lacks"):
        fit_state_dict(torchvision.models.resnet18(num_classes=3), large, where="x")


def test_versions_of_modules_survive_prefixes() -> None:
    """MNASNet refuses weights that do not say which version of it they are of."""
    source, target = (torchvision.models.mnasnet0_5(num_classes=3) for _ in range(2))
    fit_state_dict(target, nn.DataParallel(source).state_dict(), where="x")
    assert same(target.state_dict(), source.state_dict())
    fit_state_dict(target, dict(source.state_dict()), where="x")  # safetensors keep no versions


def test_keys_of_old_torchvision_layouts_are_renamed() -> None:
    source, target = (torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3) for _ in range(2))
    old = {
        key.replace("norm1.", "norm.1.")
        .replace("conv1.", "conv.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in source.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    fit = fit_state_dict(target, prefixed("module.", old), where="x")
    assert same(target.state_dict(), source.state_dict())
    assert any("old torchvision layout" in phrase for phrase in fit.adapted)


def test_modules_rename_what_their_older_versions_stored() -> None:
    source, target = (torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 8, num_classes=3) for _ in range(2))
    names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    old = OrderedDict()
    for key, value in source.state_dict().items():
        for new, before in names.items():
            key = key.replace(new, before)
        old["module." + key] = value
    old._metadata = OrderedDict((f"module.{name}", {"version": 1}) for name in source.state_dict()._metadata)  # type: ignore[attr-defined]
    fit = fit_state_dict(target, old, where="x")
    assert same(target.state_dict(), source.state_dict())
    assert set(fit.stored.values()) == set(old)
    assert fit.stored["encoder.layers.encoder_layer_0.mlp.0.weight"].endswith("encoder_layer_0.mlp.linear_1.weight")


def test_a_tensor_stored_once_for_two_names_fills_both() -> None:
    def tied(seed: int) -> nn.Sequential:
        model = nn.Sequential(*(net(seed + place) for place in range(2)))
        model[1][0] = model[0][0]
        return model

    source, target = tied(0), tied(5)
    stored = {key: value for key, value in source.state_dict().items() if not key.startswith("1.0.")}
    fit = fit_state_dict(target, stored, where="x")
    assert same(target.state_dict(), source.state_dict())
    assert target[1][0].weight is target[0][0].weight
    assert any("'1.0.weight'" in phrase for phrase in fit.adapted)


def test_lazy_modules_take_their_shapes_from_the_weights() -> None:
    target = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    fit_state_dict(target, net().state_dict(), where="x")
    assert same(target.state_dict(), net().state_dict())
    x = torch.rand(2, 3, 3, 3)
    assert torch.equal(target.eval()(x), net().eval()(x))


@pytest.mark.parametrize(
    "change", [lambda weights: prefixed("module.", weights), lambda weights: {**weights, "total_ops": torch.zeros(1)}]
)
def test_strict_takes_keys_as_they_are(change: Callable[[Any], dict[str, Any]]) -> None:
    weights = change(net().state_dict())
    fit_state_dict(net(1), weights, where="x")
    with pytest.raises(CheckpointError, match="weights do not fit"):
        fit_state_dict(net(1), weights, where="x", strict=True)
    fit_state_dict(net(1), net().state_dict(), where="x", strict=True)


def test_the_number_of_outputs_that_weights_have_is_found() -> None:
    large = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 7)).state_dict()
    assert width_wanted(net(), large, 2) == 7
    assert width_wanted(net(), net().state_dict(), 2) is None
    assert width_wanted(net(), {**large, "0.weight": torch.zeros(9, 3, 3, 3)}, 2) is None


def test_fitting_weights_are_loaded_and_keep_half_precision() -> None:
    source, target = net().half(), net()
    with torch.no_grad():
        source[0].weight.add_(1)
    fit_state_dict(target, source.state_dict(), where="x")
    assert same(dict(target.state_dict()), dict(source.state_dict()))
    assert target[0].weight.dtype == torch.float16


def test_mixed_precision_weights_are_raised_to_the_models_own() -> None:
    weights = dict(net().state_dict())
    weights["0.weight"] = weights["0.weight"].half()
    target = net()
    fit_state_dict(target, weights, where="x")
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert torch.equal(target[0].weight, weights["0.weight"].float())


def test_weights_without_batch_counters_fit() -> None:
    weights = {key: value for key, value in net().state_dict().items() if not key.endswith("num_batches_tracked")}
    fit_state_dict(net(), weights, where="x")


def test_wrong_shape_names_first_key_and_both_shapes() -> None:
    weights = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10)).state_dict()
    with pytest.raises(
        CheckpointError, match=r"m\.pt as mynet: .*'3\.weight' the architecture has \(2, 4\), .*\(10, 4\) \(in all 2 of"
    ):
        fit_state_dict(net(), weights, where="m.pt as mynet")


def test_missing_and_unexpected_keys_are_named_and_counted() -> None:
    weights = dict(net().state_dict())
    lacking = {key: value for key, value in weights.items() if not key.startswith("1.")}
    with pytest.raises(CheckpointError, match=r"the architecture has '1\.weight' \(4,\) .*4 missing, 0 unexpected"):
        fit_state_dict(net(), lacking, where="x")
    with pytest.raises(CheckpointError, match=r"has '4\.weight', which the architecture lacks .*1 unexpected"):
        fit_state_dict(net(), {**weights, "4.weight": torch.ones(2, 2)}, where="x")
    with pytest.raises(CheckpointError, match=r"has '0\.weight' .*the checkpoint has 'conv\.weight' \(1,\) instead"):
        fit_state_dict(net(), {"conv.weight": torch.ones(1)}, where="x")


def test_refused_weights_leave_the_model_as_it_was() -> None:
    model = net()
    with pytest.raises(CheckpointError):
        fit_state_dict(model, nn.Sequential(nn.Conv2d(3, 4, 3).half()).state_dict(), where="x")
    assert same(dict(model.state_dict()), dict(net().state_dict()))
