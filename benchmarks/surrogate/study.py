"""Does a surrogate trigger tell what to prune? Measures it beside CLP and two methods that see images, on many records.

    python benchmarks/surrogate/study.py RECORD ... --half development --out study.jsonl [--data CIFAR10] [--images 1000]
    ls -d runs/* | xargs -P 2 -n 1 python benchmarks/surrogate/study.py --half held-out --out study.jsonl     # two at a time

One line of JSON a record, written as soon as it is measured: what is there is not measured again, so that a study that was
stopped goes on where it was, and several processes with records of their own may share a file. A record that fails is a
line with its error, and is tried again. ``tables.py`` and ``figures.py`` beside this file show the lines.

The best u is an oracle's: it is chosen by the test images. Rounds and chosen u are measured past the gate, so that any gate
can be judged. NAD and EP run with the catalogue's options for small networks, where the record holds what they need to see.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import operator
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from lines import HALVES, SEE_IMAGES, Row, add_row, key_of, read_rows
from PIL import Image
from torch import Tensor

from clp_plugin import open_record
from clp_plugin.bench.run import make_defense, plan_defense, run_defense
from clp_plugin.errors import ClpError
from clp_plugin.evaluation.judging import RecordJudge
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.hooks import eval_mode
from clp_plugin.registry import load_catalogue
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import PRUNED_KINDS, select
from clp_plugin.surrogate.choosing import CANDIDATES
from clp_plugin.surrogate.finding import Found, find_surrogates
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.rounds import Round, prune_in_rounds
from clp_plugin.surrogate.stopping import Tried, best_stop, try_masks
from clp_plugin.types import ImageSet, Mask, Metrics, Record, TriggeredSet, defense_effectiveness

THRESHOLDS = (math.inf, *CANDIDATES)
U = 3.0


def first_images(record: Record, count: int) -> Record:
    """The record with its first clean test images, and of the triggered ones those whose clean twins are among them."""
    kept = np.flatnonzero(record.triggered.clean_index < count)
    triggered = TriggeredSet(record.triggered.images.take(kept), record.triggered.clean_index[kept])
    return replace(record, clean=record.clean.take(np.arange(min(count, len(record.clean)))), triggered=triggered)


def study(record: Record, *, device: str, seed: int) -> Row:
    """All methods on one record, as plain JSON values."""
    known = record.provenance
    view = fuse(record.model.to(device).eval(), record.input_shape)
    scores = score(view)
    start = time.perf_counter()
    score(fuse(view.model, record.input_shape))  # again: the first time, torch starts up
    scored = time.perf_counter()
    candidates = [select(scores, u) for u in THRESHOLDS]
    other = {
        "u=3, relative": select(score(view, score="relative"), U),
        "u=3, lone convs too": select(scores, U, layers=(*PRUNED_KINDS, "conv")),
    }
    found, tried, log, seconds = _search(record, view, candidates, seed=seed)
    path = list(accumulate((one.mask for one in log), operator.or_, initial=Mask({})))
    masks = [*candidates, *other.values(), *path]
    metrics = [one.metrics for one in evaluate_masks(copy_of(view.model), record, masks, device=device)]
    curve, before = metrics[: len(candidates)], metrics[0]
    best = max(range(len(curve)), key=lambda i: defense_effectiveness(before, curve[i]))
    picked = {"before": 0, "u=3": THRESHOLDS.index(U), "best u (oracle)": best, "u auto": best_stop(tried)}
    picked |= {name: len(candidates) + i for i, name in enumerate(other)} | {"rounds": len(masks) - 1}
    seconds |= dict.fromkeys(("u=3", *other), scored - start)
    seen, not_run = _with_images(record, device=device, seed=seed)
    methods = {name: _row(before, metrics[i], len(masks[i]), seconds.get(name)) for name, i in picked.items()}
    return {
        "attack": known.attack, "dataset": known.dataset, "architecture": known.architecture, "poison_rate": known.poison_rate,
        "kind": record.target.kind, "true_target": record.target.target, "base_rate": before.base_rate,
        "methods": methods | seen, "not_run": not_run,
        "u": {name: THRESHOLDS[picked[name]] for name in ("best u (oracle)", "u auto")},
        **found.to_json(), "gate": asdict(found.gate),
        "curve": [{**one.to_json(), "u": u, **_rates(m)} for one, u, m in zip(tried, THRESHOLDS, curve, strict=True)],
        "rounds": [{**one.to_json(), **_rates(m)} for one, m in zip(log, metrics[len(masks) - len(log) :], strict=True)],
        "pictures": _pictures(record, found), "torch": torch.__version__, "device": device,
    }  # fmt: skip


def _search(
    record: Record, view: FusedView, candidates: Sequence[Mask], *, seed: int
) -> tuple[Found, list[Tried], list[Round], dict[str, float]]:
    """The search, the candidates of u, the rounds past the gate, and seconds of the two methods."""
    network = PixelNetwork(copy_of(view.model), record.provenance.mean, record.provenance.std)
    start = time.perf_counter()
    with eval_mode(network.network):
        found = find_surrogates(network, record.input_shape, seed=seed)
        searched = time.perf_counter()
        tried = try_masks(network, candidates, [found.patch], found.held_out, found.like_training)
        chosen = time.perf_counter()
        _, log = prune_in_rounds(network, view, found, rounds=4)
    ended = time.perf_counter()
    return found, tried, log, {"u auto": chosen - start, "rounds": searched - start + ended - chosen}


def _with_images(record: Record, *, device: str, seed: int) -> tuple[dict[str, Row], dict[str, str]]:
    """The methods that see images, and why one was not run."""
    judge, catalogue = RecordJudge(record, device=device), load_catalogue()
    seen, not_run = {}, {}
    for name, method in SEE_IMAGES.items():
        try:
            defense, options = make_defense(catalogue, method, record.provenance.dataset, {}, scale="small")
            run = run_defense(plan_defense(record, method, defense, options, seed=seed, device=device), judge=judge)
        except ClpError as error:
            not_run[name] = str(error)
        else:
            seen[name] = _row(run.before, run.after, run.outcome.pruned, run.outcome.seconds)
    return seen, not_run


def _row(before: Metrics, after: Metrics, pruned: int | None, seconds: float | None) -> Row:
    return {**_rates(after), "der": defense_effectiveness(before, after), "pruned": pruned, "seconds": seconds}


def _rates(metrics: Metrics) -> dict[str, float]:
    return {"acc": metrics.acc, "asr": metrics.asr, "ra": metrics.ra}


def _pictures(record: Record, found: Found) -> dict[str, str]:
    """The first triggered image, its clean twin, and that with the surrogate: PNG in base64."""
    clean = _pixels(record, record.clean, int(record.triggered.clean_index[0]))
    triggered = _pixels(record, record.triggered.images, 0)
    shown = {"clean": clean, "triggered": triggered, "surrogate": found.patch.attach(clean)}
    return {name: _png(image) for name, (image,) in shown.items()}


def _pixels(record: Record, images: ImageSet, position: int) -> Tensor:
    """One image as pixels in [0, 1], ``(1, C, H, W)``."""
    mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in (record.provenance.mean, record.provenance.std))
    (image,) = images.take(np.array([position])).batches(1)
    return (image * std + mean).clamp(0, 1)


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray((255 * image).round().byte().permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def run(
    folders: Iterable[Path], out: Path, *, half: str, data: Path | None, device: str, seed: int, images: int | None
) -> None:
    """Measure what is not there yet."""
    measured = {key_of(row) for row in read_rows(out) if "error" not in row}
    for folder in folders:
        row: Row = {"record": str(folder.resolve()), "seed": seed, "images": images, "half": half}
        if key_of(row) in measured:
            continue
        try:
            record = open_record(folder, data=data)
            row |= study(first_images(record, images) if images else record, device=device, seed=seed)
        except Exception as error:  # hours of other records must not be lost to one
            row["error"] = f"{type(error).__name__}: {error}"
        add_row(out, row)
        print(f"{folder}: {row.get('error') or row['finding']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, help="folders of records")
    parser.add_argument("--out", type=Path, required=True, help="the file of lines")
    parser.add_argument("--half", required=True, choices=HALVES, help="the half that the records belong to")
    parser.add_argument("--data", type=Path, help="where the data set lies of records without images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", type=int, help="judge by the first so many clean test images and their triggered twins"
    )
    options = vars(parser.parse_args())
    run(sorted(options.pop("records")), options.pop("out"), **options)


if __name__ == "__main__":
    main()
