"""Check the fused view on real architectures and print the matrix of docs/architectures.md.

    python benchmarks/architectures.py [--only NAME ...] > docs/architectures.md
    python benchmarks/architectures.py --scan [--only NAME ...] >> docs/architectures.md

Every network is built with random weights, its layers are found, and ``clp_plugin.fusion.verification`` checks them on real
tensors: the whole network's outputs with fused kernels in place of the pairs (float64), and which channels move when a filter
changes. With ``--scan`` every network is saved in two ways, scanned and repaired by ``bench scan``, and read back.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

from clp_plugin.cli.app import app
from clp_plugin.cli.console import run
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
    unscored: int
    seconds: float
    error: float
    replaced: int
    perturbed: int
    passed: bool

    def __str__(self) -> str:
        kinds = " | ".join(str(self.counts[kind]) for kind in ("fused", "diagonal", "conv", "head"))
        verdict = "yes" if self.passed else "**NO**"
        checks = f"{self.replaced} | {self.error:.1e} | {self.perturbed} | {verdict}"
        return f"| {self.spec} | {kinds} | {self.unscored} | {self.seconds:.2f} | {checks} |"


def check(spec: str) -> Row:
    """Build, find the layers, verify."""
    torch.manual_seed(0)
    model: nn.Module = build_model(spec, num_classes=10)
    shape = default_input_shape(spec)
    start = time.perf_counter()
    view = fuse(model, shape)
    seconds = time.perf_counter() - start
    found = verify(view, shape, max_perturbed=4)
    return Row(
        spec, view.counts(), len(view.unscored), seconds, found.error, found.replaced, found.perturbed, found.passed
    )


@dataclass(frozen=True)
class Scanned:
    """One architecture's line of the list of what was saved and scanned."""

    spec: str
    layers: int
    problem: str

    @property
    def passed(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        return f"| {self.spec} | {self.layers} | {'yes' if self.passed else f'**NO**: {self.problem}'} |"


def scan(spec: str) -> Scanned:
    """Save as people do and as safetensors does, scan and repair both, load the repaired one as a script would."""
    torch.manual_seed(0)
    model = build_model(spec, num_classes=10)
    wanted = [layer.name for layer in fuse(model, default_input_shape(spec)).layers]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.save({"epoch": 3, "state_dict": nn.DataParallel(model).state_dict()}, folder / "in.pth.tar")
            save_model(model, str(folder / "in.safetensors"))
            for suffix in (".pth.tar", ".safetensors"):
                found = _bench_scan(folder / f"in{suffix}", "--arch", spec, "--repair", folder / f"out{suffix}")
                if found != wanted:
                    return Scanned(spec, len(found), f"{suffix} has other layers than the network")
            repaired = torch.load(folder / "out.pth.tar")["state_dict"]
        nn.DataParallel(model).load_state_dict(repaired)
    except Exception as error:  # the matrix goes on to the next
        return Scanned(spec, len(wanted), " ".join(str(error).split()))
    return Scanned(spec, len(wanted), "")


def _bench_scan(*arguments: object) -> list[str]:
    """The names of the layers that ``bench scan --json`` lists."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(app, ["scan", *map(str, arguments), "--json"])
    if code:
        raise RuntimeError(err.getvalue())
    return [layer["name"] for layer in json.loads(out.getvalue())["layers"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=SPECS)
    parser.add_argument("--scan", action="store_true", help="save and scan, instead of checking the layers")
    given = parser.parse_args()
    if given.scan:
        print("\n## Saved and scanned\n")
        print(
            "Printed by `python benchmarks/architectures.py --scan`: saved in `{epoch, state_dict}` with DataParallel's prefix,"
        )
        print("and by safetensors; scanned and repaired by `bench scan`; the first read back by `load_state_dict`.\n")
        print("| architecture | layers | passed |")
        print("|---|---|---|")
        print_rows(given.only, scan)
        return
    print("# Architectures\n")
    print("Printed by `python benchmarks/architectures.py`. Networks with random weights, at their usual input size.")
    print(
        "*Replaced*: pairs replaced by their fused kernels at once; *error*: largest relative difference of the network's"
    )
    print(
        "outputs then, in float64 (passes below 1e-9). *Perturbed*: layers in which one filter was changed, and exactly the"
    )
    print("channels that the view names had to move. *Seconds*: to find the layers.\n")
    print(
        "| architecture | fused | diagonal | conv | head | not scored | seconds | replaced | error | perturbed | passed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print_rows(given.only, check)


def print_rows(specs: Sequence[str], make: Callable[[str], Row | Scanned]) -> None:
    """One row an architecture as soon as it is known, then the count."""
    failed = []
    for position, spec in enumerate(specs, start=1):
        print(f"{position}/{len(specs)} {spec}", file=sys.stderr, flush=True)
        row = make(spec)
        print(row, flush=True)
        failed += [] if row.passed else [spec]
    print(f"\n{len(specs) - len(failed)} of {len(specs)} passed{': failed ' + ', '.join(failed) if failed else ''}.")


if __name__ == "__main__":
    main()
