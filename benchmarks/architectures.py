"""Check the fused view on real architectures and print the matrix of docs/architectures.md.

    python benchmarks/architectures.py [--only NAME ...] > docs/architectures.md

Every network is built with random weights, its layers are found, and ``clp_plugin.fusion.verification`` checks them on real
tensors: the whole network's outputs with fused kernels in place of the pairs (float64), and which channels move when a filter
changes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.verification import verify
from clp_plugin.networks.architectures import build_model, default_input_shape

warnings.filterwarnings("ignore")

_TORCHVISION = """alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5
squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16 wide_resnet50_2"""
_TIMM = """convmixer_768_32 convnext_atto crossvit_tiny_240 cspresnet50 deit_tiny_patch16_224 dla34 dpn68 edgenext_xx_small
efficientformer_l1 efficientvit_b0 ese_vovnet19b_dw fastvit_t8 gernet_s ghostnet_100 hardcorenas_a hrnet_w18_small levit_128s
mixer_s32_224 mixnet_s mobilenetv3_large_100 mobilevit_s poolformer_s12 regnety_002 repvgg_a0 repvit_m1 res2net50_26w_4s
resnest14d resnetv2_50 resnetv2_50x1_bit rexnet_100 selecsls42 seresnet50 skresnet18 tiny_vit_5m_224 tresnet_m visformer_tiny
xcit_nano_12_p16_224"""
_BUILTIN = "preactresnet18 resnet18 senet18 vgg19_bn"
SPECS = (
    [f"torchvision:{name}" for name in _TORCHVISION.split()]
    + [f"timm:{name}" for name in _TIMM.split()]
    + [f"builtin:{name}" for name in _BUILTIN.split()]
)


@dataclass(frozen=True)
class Row:
    """One architecture's line of the matrix."""

    spec: str
    counts: dict[str, int]
    seconds: float
    error: float
    replaced: int
    perturbed: int
    passed: bool

    def __str__(self) -> str:
        kinds = " | ".join(str(self.counts[kind]) for kind in ("fused", "diagonal", "conv", "head"))
        verdict = "yes" if self.passed else "**NO**"
        checks = f"{self.replaced} | {self.error:.1e} | {self.perturbed} | {verdict}"
        return f"| {self.spec} | {kinds} | {self.seconds:.2f} | {checks} |"


def check(spec: str) -> Row:
    """Build, find the layers, verify."""
    torch.manual_seed(0)
    model: nn.Module = build_model(spec, num_classes=10)
    shape = default_input_shape(spec)
    start = time.perf_counter()
    view = fuse(model, shape)
    seconds = time.perf_counter() - start
    found = verify(view, shape, max_perturbed=4)
    return Row(spec, view.counts(), seconds, found.error, found.replaced, found.perturbed, found.passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=SPECS)
    specs = parser.parse_args().only
    print("# Architectures\n")
    print("Printed by `python benchmarks/architectures.py`. Networks with random weights, at their usual input size.")
    print(
        "*Replaced*: pairs replaced by their fused kernels at once; *error*: largest relative difference of the network's"
    )
    print(
        "outputs then, in float64 (passes below 1e-9). *Perturbed*: layers in which one filter was changed, and exactly the"
    )
    print("channels that the view names had to move. *Seconds*: to find the layers.\n")
    print("| architecture | fused | diagonal | conv | head | seconds | replaced | error | perturbed | passed |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    failed = []
    for position, spec in enumerate(specs, start=1):
        print(f"{position}/{len(specs)} {spec}", file=sys.stderr, flush=True)
        row = check(spec)
        print(row, flush=True)
        failed += [] if row.passed else [spec]
    print(f"\n{len(specs) - len(failed)} of {len(specs)} passed{': failed ' + ', '.join(failed) if failed else ''}.")


if __name__ == "__main__":
    main()
