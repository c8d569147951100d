"""Time of scoring all channels: one batched pass against the published loop, in the same run.

    python benchmarks/score.py [--repeats 15] [--threads 2]

The baseline is the published rule re-implemented: for every channel of every BatchNorm one SVD of its kernel, moved to a
Python list. Both get the model in memory; finding the layers is timed apart, as it does not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.fusion.layers import fuse
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "ResNet-18 (CIFAR stem)": (lambda: build("resnet18", num_classes=10), (3, 32, 32)),
    "VGG-19-BN": (lambda: build("vgg19_bn", num_classes=10), (3, 32, 32)),
    "ResNet-152": (lambda: torchvision.models.resnet152(weights=None), (3, 224, 224)),
}


def published_loop(model: nn.Module) -> dict[str, list[float]]:
    """Scores by the published rule: SVD channel by channel with the last convolution in module order."""
    scores: dict[str, list[float]] = {}
    conv = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            conv = module
        elif isinstance(module, nn.BatchNorm2d) and conv is not None:
            std = module.running_var.sqrt()
            values = []
            for k in range(conv.weight.shape[0]):
                kernel = conv.weight[k].reshape(conv.weight.shape[1], -1) * (module.weight[k] / std[k]).abs()
                values.append(float(torch.linalg.svdvals(kernel.detach().cpu()).max()))
            scores[name] = values
    return scores


def seconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best and median of ``repeats`` runs after one warm-up."""
    function()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found), statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--baseline-repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, torch {torch.__version__}; best (median) of {options.repeats} runs\n")
    print(
        "| model | BN channels | weights, million | published loop, ms | batched, ms | ratio of best | of medians "
        "| one read of the weights, ms | finding the layers, ms | largest relative difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, (make, shape) in MODELS.items():
        report(name, make().eval(), shape, options.repeats, options.baseline_repeats)
    print()
    extra_memory()


def report(name: str, model: nn.Module, shape: tuple[int, int, int], repeats: int, baseline_repeats: int) -> None:
    """Print one row."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    view = fuse(model, shape)
    convs = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    slow = seconds(lambda: published_loop(model), baseline_repeats)
    fast = seconds(lambda: select(score(view), 3.0), repeats)
    read = seconds(lambda: [w.sum() for w in convs], repeats)
    find = seconds(lambda: fuse(model, shape), 3)
    baseline, ours = published_loop(model), score(fuse(model, shape, pairing="registration")).sigma
    difference = max(
        float((torch.tensor(baseline[key]) - torch.from_numpy(ours[key])).abs().max() / max(baseline[key]))
        for key in baseline
    )
    channels = sum(len(v) for v in baseline.values())
    million = sum(w.numel() for w in convs) / 1e6
    print(
        f"| {name} | {channels} | {million:.1f} | {1e3 * slow[0]:.0f} ({1e3 * slow[1]:.0f}) "
        f"| {1e3 * fast[0]:.1f} ({1e3 * fast[1]:.1f}) | **{slow[0] / fast[0]:.0f}x** | {slow[1] / fast[1]:.0f}x "
        f"| {1e3 * read[0]:.1f} | {1e3 * find[0]:.0f} | {difference:.1e} |",
        flush=True,
    )


def extra_memory() -> None:
    """Peak of newly allocated tensor memory while scoring, as a share of the weights."""
    for name, (make, shape) in MODELS.items():
        for dtype in (torch.float32, torch.float16):
            model = make().to(dtype).eval()
            view = fuse(model, shape)
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            print(
                f"{name}, {dtype}: extra memory {100 * peak_allocation(lambda v=view: score(v)) / weights:.1f} % of the weights"
            )


def peak_allocation(function: Callable[[], object]) -> int:
    """Peak of live tensor bytes allocated inside ``function``, from torch's own allocation events, plus numpy's."""
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak + numpy_peak


if __name__ == "__main__":
    main()
