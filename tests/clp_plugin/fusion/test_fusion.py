"""Which layers a model has: answers written by hand, whatever the wrapper; content of real tensors as oracle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from content_oracle import disagreements
from tiny_nets import CASES, Case, Wired, classify, conv
from torch import nn
from torch.nn.utils import prune
from untouched import untouched

from clp_plugin.errors import PairingError
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.scoring.lipschitz import score

Build = Callable[..., nn.Module]


def described(view: FusedView) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {layer.name: (layer.kind, layer.conv) for layer in view.layers}


def test_layers_of_every_tiny_net_are_those_written_by_hand(case: Case, net: nn.Module) -> None:
    view = fuse(net, case.shape)
    assert described(view) == case.layers
    assert view.unscored.keys() == case.unscored
    for layer in view.layers:
        if layer.kind != "head":
            assert layer.norm == (None if layer.kind == "conv" else layer.name)
        assert len(layer.source) == len(layer.source_channel) == layer.channels
        if layer.kind == "diagonal":
            assert (layer.source == -1).all()


@pytest.mark.parametrize("name", ["plain", "shared_norm", "dense", "no_norm", "residual_in_place"])
def test_layers_come_in_the_order_of_execution(name: str, build: Build) -> None:
    assert [layer.name for layer in fuse(build(name), CASES[name].shape).layers] == list(CASES[name].layers)


def test_each_channel_of_a_norm_is_followed_to_its_filter(build: Build) -> None:
    shuffled = fuse(build("shuffle_and_chunk"), (3, 8, 8))
    assert shuffled.layer("bn1").source_channel.tolist() == [0, 4, 1, 5]
    assert shuffled.layer("bn2").source_channel.tolist() == [2, 6, 3, 7]
    last = fuse(build("dense"), (3, 8, 8)).layer("bn3")
    assert last.source.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, -1, -1]
    assert last.source_channel.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, -1, -1]
    flat = fuse(build("flattened_into_1d_norms"), (3, 4, 4)).layer("bn1")
    assert flat.source_channel.tolist() == np.repeat(np.arange(4), 4).tolist()


def test_norms_read_what_the_view_says_on_real_tensors(case: Case, net: nn.Module) -> None:
    view = fuse(net, case.shape)
    assert disagreements(view, net.double(), case.shape) == []


def test_the_content_oracle_sees_a_wrong_channel(build: Build) -> None:
    model = build("shuffle_and_chunk").double()
    view = fuse(model, (3, 8, 8))
    view.layer("bn1").source_channel[1] = 5
    assert disagreements(view, model, (3, 8, 8)) == ["bn1[1]: view {('conv1', 5)}, content {('conv1', 4)}"]


class Normalize(nn.Module):
    """Its constants are plain attributes, which stay behind when the run uses meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / 0.25


class Toolbox:
    """No module, but keeps one in ``_model``, as TrojanZoo does."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "compile in DataParallel": lambda m: nn.DataParallel(torch.compile(m)),
    "toolbox": Toolbox,
    "toolbox around DataParallel": lambda m: Toolbox(nn.DataParallel(m)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("pairing", ["dataflow", "registration"])
def test_wrapped_model_gives_the_same_view(wrap: Callable[[nn.Module], object], pairing: str, build: Build) -> None:
    model = build("pre_activation")
    bare, wrapped = fuse(model, (3, 8, 8), pairing=pairing), fuse(wrap(model), (3, 8, 8), pairing=pairing)
    assert wrapped.model is model
    assert str(wrapped) == str(bare)


def test_normalization_in_front_gives_the_same_layers(build: Build) -> None:
    model = build("dense")
    view = fuse(nn.Sequential(Normalize(), model), (3, 8, 8))
    assert {name.removeprefix("1."): what for name, (what, _) in described(view).items()} == {
        name: what for name, (what, _) in CASES["dense"].layers.items()
    }
    assert all(name.startswith("1.") for layer in view.layers for name in (layer.name, *layer.conv))


def test_what_holds_no_module_is_refused() -> None:
    with pytest.raises(PairingError, match="found dict"):
        unwrap({"model": 1})


def test_timm_norm_with_activation_ends_the_layer_before_it() -> None:
    act = pytest.importorskip("timm.layers").BatchNormAct2d
    net = Wired(
        lambda n, x: classify(n, n.bn2(n.bn1(n.conv1(x)))),
        conv1=conv(3, 4), bn1=act(4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    view = fuse(net, (3, 8, 8))
    assert described(view)["bn1"] == ("fused", ("conv1",))
    assert described(view)["bn2"] == ("diagonal", ())


def test_activation_between_conv_and_norm_makes_a_diagonal_layer() -> None:
    net = Wired(
        lambda n, x: classify(n, n.bn(n.conv1(x).relu_())), conv1=conv(3, 4), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 3)
    )
    assert described(fuse(net.eval(), (3, 8, 8)))["bn"] == ("diagonal", ())


def test_model_is_left_as_it_was(case: Case, net: nn.Module) -> None:
    net.train()
    next(net.children()).eval()
    with untouched(net):
        fuse(net, case.shape)


def _two_names(net: nn.Module) -> None:
    net.features = nn.Sequential(net.conv1, net.bn1)


def _counting(net: nn.Module) -> None:
    """As profilers do, and as modules do that keep what they computed for a size."""
    net.register_buffer("calls", torch.zeros(()))
    net.sizes = {}
    wired = net._wiring

    def forward(n: nn.Module, x: torch.Tensor) -> object:
        n.calls += 1
        n.sizes[tuple(x.shape)] = torch.arange(x.shape[-1], device=x.device)
        return wired(n, x)

    net._wiring = forward


KINDS_OF_WEIGHTS: dict[str, Callable[[nn.Module], object]] = {
    "two names": _two_names,
    "pruned": lambda net: prune.ln_structured(net.conv2, "weight", 0.5, n=2, dim=0),
    "pruned norm": lambda net: prune.l1_unstructured(net.bn1, "weight", 0.5),
    "old weight_norm": lambda net: nn.utils.weight_norm(net.conv1),
    "old spectral_norm": lambda net: nn.utils.spectral_norm(net.conv2),
    "old spectral_norm of the classifier": lambda net: nn.utils.spectral_norm(net.fc),
    "parametrized": lambda net: nn.utils.parametrizations.spectral_norm(net.conv1),
    "parametrized norm": lambda net: nn.utils.parametrize.register_parametrization(net.bn1, "weight", nn.Identity()),
    "calls counted and sizes kept": _counting,
}


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm):FutureWarning")
@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", KINDS_OF_WEIGHTS)
def test_model_of_any_kind_of_weights_is_left_as_it_was(kind: str, training: bool, fails: bool, build: Build) -> None:
    net = build("plain")
    KINDS_OF_WEIGHTS[kind](net)
    net(torch.randn(2, 3, 8, 8))  # with gradients: what the wrappers compute is then no leaf
    net.train(training)
    with untouched(net), pytest.raises(PairingError) if fails else contextlib.nullcontext():
        score(fuse(net, (5, 8, 8) if fails else (3, 8, 8)))
    assert not fails or net(torch.randn(2, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_do_not_depend_on_the_dtype(dtype: torch.dtype, build: Build) -> None:
    assert described(fuse(build("dense").to(dtype), (3, 8, 8))) == CASES["dense"].layers


def test_branches_open_only_in_training_are_reached_and_marked(build: Build) -> None:
    view = fuse(build("auxiliary_head"), (3, 8, 8))
    assert "training only" in view.layer("aux_bn").why
    assert "training only" not in view.layer("bn1").why
    assert view.unreached == ()


def test_modules_never_executed_are_listed(build: Build) -> None:
    model = build("plain")
    model.spare = nn.Conv2d(3, 3, 1)
    view = fuse(model, (3, 8, 8))
    assert view.unreached == ("spare",)
    assert "never executed: spare" in str(view)


def test_printing_shows_every_layer_and_why(build: Build) -> None:
    text = str(fuse(build("pre_activation"), (3, 8, 8)))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "fed by conv1" in lines["bn1"]
    assert "diagonal" in lines["bn2"]
    assert "add" in lines["bn2"]
    assert "4 layers (1 fused, 1 diagonal, 1 conv, 1 head)" in text


REASONS = {
    "group_norm": ("conv2", "native_group_norm behind it undoes any scale of its kernel"),
    "half_instance_norm": ("conv2", "3 of 6 channels: native_batch_norm behind it"),
    "deformable": ("bn2", "fed by deform_conv2d, whose kernel is not that of a convolution module"),
    "convolution_in_a_module_of_ones_own": ("conv2", "its kernel is not that of a convolution module (convolution)"),
    "scaled_before_its_norm": ("bn2", "mul between conv2 and it changes the kernel"),
    "quantization_aware_block": ("conv2.bn", "div between conv2 and it changes the kernel"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_scored_is_named_with_the_reason(name: str, build: Build) -> None:
    view = fuse(build(name), (3, 8, 8))
    module, reason = REASONS[name]
    assert reason in view.unscored[module]
    assert f"not scored: {module}: {view.unscored[module]}" in str(view)


def test_convolution_whose_silence_a_layer_norm_breaks_is_scored_and_marked(build: Build) -> None:
    view = fuse(build("layer_norm"), (3, 8, 8))
    assert "LayerNorm" in view.layer("conv2").unprunable
    assert "never pruned" in next(line for line in str(view).splitlines() if line.startswith("conv2"))
    assert view.layer("bn1").unprunable == ""


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_scripted_parts_and_what_cannot_be_copied_are_no_obstacle(build: Build) -> None:
    class Act(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    net = build("plain")
    net.lock, net.act = threading.Lock(), torch.jit.script(Act())
    wired = net._wiring
    net._wiring = lambda n, x: wired(n, n.act(x))
    with untouched(net):
        assert described(fuse(net, (3, 8, 8))) == CASES["plain"].layers


def test_forward_that_calls_modules_of_another_object_is_refused(build: Build) -> None:
    net = build("plain")
    inner = net.forward
    net.forward = lambda x: inner(x)
    with untouched(net), pytest.raises(PairingError, match="none of the network's convolutions and BatchNorms ran"):
        fuse(net, (3, 8, 8))


def test_layer_of_unknown_name_is_a_key_error(build: Build) -> None:
    with pytest.raises(KeyError):
        fuse(build("plain"), (3, 8, 8)).layer("nothing")


def test_wrong_input_size_says_what_to_do(build: Build) -> None:
    with pytest.raises(PairingError, match=r"\(1, 3, 8, 8\).*input size"):
        fuse(build("flattened_into_1d_norms"), (3, 8, 8))


def test_classifier_layers_of_torchvision_are_heads_and_gates_are_not() -> None:
    vgg = fuse(torchvision.models.vgg11(weights=None, init_weights=False), (3, 32, 32))
    assert [layer.name for layer in vgg.layers if layer.kind == "head"] == ["classifier.6"]
    squeeze = fuse(torchvision.models.squeezenet1_1(), (3, 64, 64))
    assert [layer.name for layer in squeeze.layers if layer.kind == "head"] == ["classifier.1"]
    mobile = fuse(torchvision.models.mobilenet_v3_small(), (3, 64, 64))
    gates = [layer for layer in mobile.layers if ".fc1" in layer.name or ".fc2" in layer.name]
    assert {layer.kind for layer in gates} == {"conv"}
    assert len(gates) == 18
    assert [layer.name for layer in mobile.layers if layer.kind == "head"] == ["classifier.3"]


def test_published_pairing_takes_the_last_conv_registered(build: Build) -> None:
    view = fuse(build("pre_activation"), (3, 8, 8), pairing="registration")
    assert described(view) == {"bn2": ("fused", ("conv1",)), "bn1": ("fused", ("conv1",))}
    assert view.pairing == "registration"


def test_published_pairing_refuses_what_its_code_crashes_on(build: Build) -> None:
    with pytest.raises(PairingError, match=r"(?s)bn1.*dataflow"):
        fuse(build("norm_without_affine"), (3, 8, 8), pairing="registration")
