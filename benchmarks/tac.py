"""Time of measuring TAC of all layers against the two plain forward passes that it cannot do without.

    python benchmarks/tac.py [--images 512] [--repeats 5]

Baseline, in the same run: the same model on the same clean and triggered images in the same batches, nothing watched.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.evidence.tac import trigger_activated_change
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.view import FusedView
from clp_plugin.images import ArrayImages
from clp_plugin.types import Provenance, Record, TargetRule, TriggeredSet

BATCH = 128


def record_of(model: nn.Module, images: int) -> Record:
    """A record of random images with a white corner as the trigger."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(1, 10, images)
    stamped = pixels.copy()
    stamped[:, :, -3:, -3:] = 255
    mean = std = (0.5, 0.5, 0.5)
    clean = ArrayImages(pixels, labels, mean, std)
    pairs = TriggeredSet(ArrayImages(stamped, labels, mean, std), np.arange(images))
    origin = Provenance("benchmark", "", "", "badnets", "random", "", 0.1, 0, mean, std)
    return Record(model, (3, 32, 32), clean, pairs, TargetRule("all_to_one", 10, 0), clean, origin)


def plain(record: Record) -> None:
    """The two forward passes alone."""
    with torch.inference_mode():
        for images in (record.clean, record.triggered.images):
            for batch in images.batches(BATCH):
                record.model(batch)


def best_ratio(view: FusedView, record: Record, repeats: int) -> tuple[float, float, float]:
    """Best seconds of both, alternating so that they share whatever else the machine does, and the ratio."""
    best = [float("inf"), float("inf")]
    jobs: list[Callable[[], object]] = [
        lambda: plain(record),
        lambda: trigger_activated_change(view, record, batch_size=BATCH),
    ]
    for _ in range(repeats):
        for i, job in enumerate(jobs):
            start = time.perf_counter()
            job()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1], best[1] / best[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {options.images} image pairs, "
        f"best of {options.repeats}\n"
    )
    print("| model | two plain passes, s | TAC of all layers, s | ratio |")
    print("|---|---|---|---|")
    for name in ("resnet18", "preactresnet18", "vgg19_bn"):
        model = build(name, num_classes=10).eval()
        record = record_of(model, options.images)
        base, ours, ratio = best_ratio(fuse(model, record.input_shape), record, options.repeats)
        print(f"| {name} (CIFAR size) | {base:.2f} | {ours:.2f} | **{ratio:.2f}x** |", flush=True)


if __name__ == "__main__":
    main()
