"""Does a surrogate trigger tell what to prune? CLP at u = 3, at the best u, at the chosen u, and the rounds, on many records.

    python benchmarks/surrogate.py runs/* --out runs/surrogate.json [--device cuda] [--images 1000]

Every record has a JSON file of its own beside ``--out``: what was measured is not measured again, so that a study that was
stopped goes on where it was. The best u is an oracle's: it is chosen by the test images. The rounds and the chosen u are
measured past the gate; whether it was passed, and with which numbers, stands beside them, so that any gate can be judged.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clp_plugin import open_record
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.fusion.layers import fuse
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.hooks import eval_mode
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.surrogate.choosing import CANDIDATES
from clp_plugin.surrogate.finding import Gate, find_surrogates
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.rounds import prune_in_rounds
from clp_plugin.surrogate.stopping import best_stop, try_masks
from clp_plugin.types import Mask, Metrics, Record, TriggeredSet, defense_effectiveness

ORACLE = tuple(np.arange(5.0, 0.99, -0.5).tolist())
METHODS = ("before", "u=3", "best u (oracle)", "u chosen", "rounds")


def first_images(record: Record, count: int) -> Record:
    """The record with its first clean test images, and of the triggered ones those whose clean twins are among them."""
    kept = np.flatnonzero(record.triggered.clean_index < count)
    triggered = TriggeredSet(record.triggered.images.take(kept), record.triggered.clean_index[kept])
    return replace(record, clean=record.clean.take(np.arange(min(count, len(record.clean)))), triggered=triggered)


def study(record: Record, *, device: str, seed: int) -> dict[str, object]:
    """All methods on one record, as plain JSON values."""
    model, known = record.model.to(device).eval(), record.provenance
    view = fuse(model, record.input_shape)
    scores = score(view)
    network = PixelNetwork(copy_of(model), known.mean, known.std)
    start = time.perf_counter()
    with eval_mode(network.network):
        found = find_surrogates(network, record.input_shape, seed=seed)
        searched = time.perf_counter()
        thresholds = (math.inf, *CANDIDATES)
        candidates = [select(scores, u) for u in thresholds]
        tried = try_masks(network, candidates, [found.patch], found.held_out, found.like_training)
        stop = best_stop(tried)
        chosen = time.perf_counter()
        in_rounds, log = prune_in_rounds(network, view, found, rounds=4)
    ended = time.perf_counter()
    masks = [Mask({}), select(scores, 3.0), candidates[stop], in_rounds, *(select(scores, u) for u in ORACLE)]
    metrics = [one.metrics for one in evaluate_masks(copy_of(model), record, masks, device=device)]
    best = max(range(4, len(masks)), key=lambda i: defense_effectiveness(metrics[0], metrics[i]))
    seconds = (0.0, 0.0, 0.0, chosen - start, searched - start + ended - chosen)
    rows = [_row(metrics, masks, i, s) for i, s in zip((0, 1, best, 2, 3), seconds, strict=True)]
    return {
        "record": known.path, "attack": known.attack, "architecture": known.architecture, "poison_rate": known.poison_rate,
        "target": record.target.target, "named": found.patch.target, "named_by_pattern": found.pattern.target,
        "size": found.patch.size, "s": found.patch.success, "passes": Gate().passes(found.patch),
        "u": [None, 3.0, ORACLE[best - 4], None if stop == 0 else thresholds[stop], None],
        "methods": dict(zip(METHODS, rows, strict=True)), "rounds": [one.to_json() for one in log],
        "torch": torch.__version__, "device": device, "seed": seed,
    }  # fmt: skip


def _row(metrics: list[Metrics], masks: list[Mask], which: int, seconds: float) -> dict[str, float]:
    """One method's numbers."""
    after = metrics[which]
    return {
        "acc": after.acc, "asr": after.asr, "ra": after.ra, "der": defense_effectiveness(metrics[0], after),
        "pruned": len(masks[which]), "seconds": seconds,
    }  # fmt: skip


def table(results: list[dict]) -> str:
    """The docs' table: ACC / ASR / RA in percent and channels; the class that was named; the gate's numbers."""
    lines = [
        f"| record | {' | '.join(METHODS)} | class named | patch, s | gate | seconds |",
        f"|---|{'--:|' * len(METHODS)}---|---|---|--:|",
    ]
    for one in results:
        rows = one["methods"].values()
        cells = [f"{100 * r['acc']:.1f} / {100 * r['asr']:.1f} / {100 * r['ra']:.1f} ({r['pruned']})" for r in rows]
        right = "right" if one["named"] == one["target"] else f"wrong ({one['target']})"
        size = f"{one['size']}x{one['size']}, {one['s']:.0%}"
        gate = "passed" if one["passes"] else "not passed"
        seconds = f"{one['methods']['rounds']['seconds']:.0f}"
        cells += [f"{one['named']}, {right}", size, gate, seconds]
        lines.append(f"| {Path(one['record']).name} | {' | '.join(cells)} |")
    means = [float(np.mean([one["methods"][name]["der"] for one in results])) for name in METHODS]
    return "\n".join([*lines, f"| mean DER | {' | '.join(f'{mean:.3f}' for mean in means)} | | | | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, help="folders of records")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; one for each record comes beside it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", type=int, help="judge by the first so many clean test images and their triggered twins"
    )
    options = parser.parse_args()
    parts = options.out.with_suffix("")
    parts.mkdir(parents=True, exist_ok=True)
    results = []
    for folder in sorted(options.records):
        part = parts / f"{'-'.join(folder.absolute().parts[-2:])}-seed{options.seed}-{options.images or 'all'}.json"
        if not part.exists():
            record = open_record(folder)
            record = first_images(record, options.images) if options.images else record
            write_json_atomically(part, study(record, device=options.device, seed=options.seed))
        results.append(json.loads(part.read_text(encoding="utf-8")))
    write_json_atomically(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
