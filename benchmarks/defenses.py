"""Time and peak memory of every defense on one record, CLP = 1, as in table 4 of the CLP paper.

    python benchmarks/defenses.py RECORD [--scale small] [--defense NAME]... [--device cpu]

Each defense runs in a process of its own, one after the other, so that no peak hides behind an earlier one. Seconds are
those of the method alone, loading and evaluation left out. Memory is the peak of the process up to the method's end, and
how much of it the method added to the peak before it: on the CPU resident memory, on a GPU what torch allocated.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from clp_plugin.bench.budget import draw_budget
from clp_plugin.bench.run import make_defense
from clp_plugin.errors import ClpError
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.opening import open_record
from clp_plugin.registry import load_catalogue


@dataclass(frozen=True)
class Cost:
    """Of one method; megabytes."""

    seconds: float
    peak: float
    extra: float
    budget: str


def measure(record_path: Path, method: str, scale: str, device: str, seed: int) -> Cost | str:
    """In this process; what went wrong, if it did."""
    record = open_record(record_path)
    defense, _ = make_defense(load_catalogue(), method, record.provenance.dataset, {}, scale=scale)
    model = record.model.to(device).eval()
    try:
        budget, label = draw_budget(record, method, defense, seed=seed)
        torch.manual_seed(seed)
        warm_up(model, record.input_shape, device)
        before = memory(device)
        start = time.perf_counter()
        defense.repair(model, budget, seed=seed)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    except ClpError as error:
        return str(error)
    peak = memory(device)
    return Cost(seconds, peak, peak - before, label)


def warm_up(model: torch.nn.Module, shape: tuple[int, int, int], device: str) -> None:
    """Torch imports its compiler and builds kernels at the first uses; no method should pay for that."""
    from clp_plugin.fusion.layers import fuse

    fuse(model, shape)
    loss = model(torch.zeros(2, *shape, device=device)).sum()
    loss.backward()
    model.zero_grad(set_to_none=True)


def memory(device: str) -> float:
    """Highest so far, in megabytes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--defense", action="append")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    device = pick_device(given.device)
    names = given.defense or load_catalogue().names("defenses")
    names = ["clp", *(name for name in names if name != "clp")]
    print(
        f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}, {given.record.name}, {given.scale}\n"
    )
    print("| method | saw | seconds | CLP = 1 | peak, MB | of that during the method, MB |")
    print("|---|---|--:|--:|--:|--:|")
    reference = 0.0
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(measure, (given.record, name, given.scale, device, given.seed))
        if isinstance(cost, str):
            print(f"| {name} | failed: {cost} | | | | |", flush=True)
            continue
        reference = reference or cost.seconds
        print(
            f"| {name} | {cost.budget} | {cost.seconds:.2f} | {cost.seconds / reference:.0f} | {cost.peak:.0f} "
            f"| {cost.extra:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
