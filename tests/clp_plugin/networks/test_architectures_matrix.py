"""The fused view is right on every classification family of torchvision and a spread of timm's.

Oracles: ``verify`` (perturbed filters, fused kernels in float64) and the content of real tensors. And every one of them can
be saved, scanned by ``bench scan`` and read back by ``load_state_dict``.
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import bench
from content_oracle import disagreements
from safetensors.torch import save_model
from torch import nn
from untouched import untouched

from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.verification import verify
from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.architectures import build_model

# name -> (input size, number of diagonal norms, number of heads); diagonal norms counted from the papers' drawings
TORCHVISION = {
    "alexnet": (64, 0, 1), "convnext_tiny": (64, 0, 1), "densenet121": (64, 4, 1), "efficientnet_b0": (64, 0, 1),
    "efficientnet_v2_s": (64, 0, 1), "googlenet": (64, 0, 3), "inception_v3": (299, 0, 2), "maxvit_t": (64, 2, 1),
    "mnasnet0_5": (64, 0, 1), "mobilenet_v2": (64, 0, 1), "mobilenet_v3_small": (64, 0, 1), "regnet_x_400mf": (64, 0, 1),
    "regnet_y_400mf": (64, 0, 1), "resnet18": (64, 0, 1), "resnext50_32x4d": (64, 0, 1),
    "shufflenet_v2_x0_5": (64, 0, 1), "squeezenet1_1": (64, 0, 1), "swin_t": (64, 0, 1), "swin_v2_t": (64, 0, 1),
    "vgg11_bn": (32, 0, 1), "vit_b_16": (32, 0, 1),
}  # fmt: skip
OPTIONS = {
    "googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}, "vit_b_16": {"image_size": 32},
    "maxvit_t": {
        "input_size": (64, 64), "stem_channels": 16, "partition_size": 2, "block_channels": [16, 32],
        "block_layers": [1, 2], "head_dim": 8, "stochastic_depth_prob": 0.0,
    },
}  # fmt: skip
TIMM = {
    "resnetv2_50": 64, "seresnet50": 64, "skresnet18": 64, "resnest14d": 64, "res2net50_26w_4s": 64, "dla34": 64,
    "hrnet_w18_small": 64, "dpn68": 64, "cspresnet50": 64, "cspdarknet53": 64, "vovnet39a": 64, "ese_vovnet19b_dw": 64,
    "tf_efficientnet_b0": 64, "mixnet_s": 64, "mobilenetv3_large_100": 64, "ghostnet_100": 64, "regnety_002": 64,
    "repvgg_a0": 64, "inception_v4": 160, "legacy_xception": 64, "levit_128s": 224, "mobilevit_s": 64,
    "coatnet_0_rw_224": 64, "convnext_atto": 64, "efficientvit_b0": 64, "efficientvit_m0": 224, "fastvit_t8": 64,
    "edgenext_xx_small": 64, "poolformer_s12": 64, "visformer_tiny": 224, "tresnet_m": 64, "hardcorenas_a": 64,
    "selecsls42": 64, "gernet_s": 64, "botnet26t_256": 64, "repvit_m1": 64, "tiny_vit_5m_224": 224, "hgnet_tiny": 64,
    "xcit_nano_12_p16_224": 64, "densenet121": 64, "deit_tiny_patch16_224": 224, "rexnet_100": 64,
}  # fmt: skip

SIZED = ("coatnet_0_rw_224", "botnet26t_256", "xcit_nano_12_p16_224")  # that must be told of inputs so small


def check(model: nn.Module, size: int) -> FusedView:
    """The model stays as it is, both oracles pass, all modules were reached, and most fused layers could be replaced."""
    shape = (3, size, size)
    with untouched(model.eval()):
        view = fuse(model, shape)
        result = verify(view, shape, max_perturbed=1)  # the content shows of every channel whose it is
    assert result.passed, result
    assert len(result.skipped) <= 0.1 * result.replaced, result.skipped
    assert view.unreached == ()
    assert disagreements(view, model.double(), shape) == []
    return view


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_family(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    size, diagonal, heads = TORCHVISION[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        # No input of fewer than 224 pixels fits the MaxVit of this name: its class makes a smaller one.
        build = models.MaxVit if name == "maxvit_t" else partial(models.get_model, name, weights=None)
        model = build(num_classes=10, **OPTIONS.get(name, {}))
    counts = check(model, size).counts()
    assert (counts["diagonal"], counts["head"]) == (diagonal, heads)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_family(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"img_size": TIMM[name]} if name in SIZED else {}
        check(timm.create_model(name, pretrained=False, **options), TIMM[name])


@pytest.mark.parametrize("name", ["preactresnet18", "senet18", "resnet18", "vgg11_bn"])
def test_builtin_network(name: str) -> None:
    builtin = importlib.import_module("clp_plugin.adapters.builtin.models.build")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        check(builtin.build(name, num_classes=10, width=8), 32)


def check_saves_and_scans(spec: str, size: int, folder: Path) -> None:
    """As people save it (wrapped, nested, among other things) and as safetensors does (tied tensors once, no versions)."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = build_model(spec, num_classes=7)
    wrapped, out = folder / "in.pth.tar", folder / "out.pth.tar"
    torch.save({"epoch": 3, "state_dict": nn.DataParallel(model).state_dict()}, wrapped)
    save_model(model, str(folder / "in.safetensors"))
    scan = ("--arch", spec, "--input-size", f"3,{size},{size}", "--u", "1", "--json")
    names = [layer.name for layer in fuse(model, (3, size, size)).layers]
    found = [
        bench("scan", wrapped, *scan, "--repair", out).json,
        bench("scan", folder / "in.safetensors", *scan, "--repair", folder / "out.safetensors").json,
    ]
    assert [[layer["name"] for layer in each["layers"]] for each in found] == [names, names]
    assert [each["layers"] for each in found[1:]] == [found[0]["layers"]]
    assert found[0]["loaded"]["guessed"] == ["7 classes, read off the weights (--num-classes)"]
    repaired = torch.load(out)
    assert repaired["epoch"] == 3
    nn.DataParallel(build_model(spec, num_classes=7)).load_state_dict(repaired["state_dict"])


QUICK = {
    "builtin:preactresnet18": 32,
    "builtin:senet18": 32,
    "torchvision:mnasnet0_5": 96,
    "torchvision:squeezenet1_1": 96,
}
ALL = {f"torchvision:{name}": size for name, (size, *_) in TORCHVISION.items()} | {
    f"timm:{k}": v for k, v in TIMM.items()
}


@pytest.mark.parametrize("spec", QUICK)
def test_network_is_saved_and_scanned(spec: str, tmp_path: Path) -> None:
    check_saves_and_scans(spec, QUICK[spec], tmp_path)


# Those that were hard: rearranged images, auxiliary heads, many branches, attention, splits. All 64 are saved and scanned by
# `benchmarks/architectures.py --scan`, which takes six minutes.
HARD = [
    "timm:tresnet_m", "torchvision:googlenet", "timm:levit_128s", "timm:hrnet_w18_small",
    "timm:resnest14d",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("spec", HARD)
def test_hard_networks_are_saved_and_scanned(spec: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    check_saves_and_scans(spec, ALL[spec], tmp_path)
