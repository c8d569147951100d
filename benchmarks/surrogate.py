"""Does a surrogate trigger tell what to prune? CLP at u = 3, at the best u, at the chosen u, and the rounds, on many records.

    python benchmarks/surrogate.py RECORD ... --out study.jsonl [--data CIFAR10] [--device cuda] [--images 1000] [--seed 0]
    python benchmarks/surrogate.py --out study.jsonl                     # the tables of what is there

One line of JSON a record, written as soon as it is measured: what is there is not measured again, so that a study that was
stopped goes on where it was, and several processes with records of their own may share a file. A record that fails is a
line with its error, and is tried again. The best u is an oracle's: it is chosen by the test images. Rounds and chosen u are
measured past the gate, so that any gate can be judged; the tables show them as they are used, and past the gate in words.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clp_plugin import open_record
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.files.atomic import finite
from clp_plugin.fusion.layers import fuse
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.hooks import eval_mode
from clp_plugin.reports.ranking import BACKDOOR_MARGIN
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.surrogate.choosing import CANDIDATES
from clp_plugin.surrogate.finding import find_surrogates
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.surrogate.rounds import prune_in_rounds
from clp_plugin.surrogate.stopping import best_stop, try_masks
from clp_plugin.types import Mask, Metrics, Record, TriggeredSet, defense_effectiveness

METHODS = ("before", "u=3", "best u (oracle)", "u auto", "rounds")
GATED = ("u auto", "rounds")
Row = dict[str, Any]


def first_images(record: Record, count: int) -> Record:
    """The record with its first clean test images, and of the triggered ones those whose clean twins are among them."""
    kept = np.flatnonzero(record.triggered.clean_index < count)
    triggered = TriggeredSet(record.triggered.images.take(kept), record.triggered.clean_index[kept])
    return replace(record, clean=record.clean.take(np.arange(min(count, len(record.clean)))), triggered=triggered)


def study(record: Record, *, device: str, seed: int) -> Row:
    """All methods on one record, as plain JSON values."""
    model, known = record.model.to(device).eval(), record.provenance
    view = fuse(model, record.input_shape)
    scores = score(view)
    network = PixelNetwork(copy_of(model), known.mean, known.std)
    thresholds = (math.inf, *CANDIDATES)
    candidates = [select(scores, u) for u in thresholds]
    start = time.perf_counter()
    with eval_mode(network.network):
        found = find_surrogates(network, record.input_shape, seed=seed)
        searched = time.perf_counter()
        tried = try_masks(network, candidates, [found.patch], found.held_out, found.like_training)
        stop = best_stop(tried)
        chosen = time.perf_counter()
        in_rounds, log = prune_in_rounds(network, view, found, rounds=4)
    ended = time.perf_counter()
    judged = evaluate_masks(copy_of(model), record, [in_rounds, *candidates], device=device)
    rounds, *curve = [one.metrics for one in judged]
    before = curve[0]
    best = max(range(len(curve)), key=lambda i: defense_effectiveness(before, curve[i]))
    three = CANDIDATES.index(3.0) + 1
    seconds = {"u auto": chosen - start, "rounds": searched - start + ended - chosen}
    picked = {"before": 0, "u=3": three, "best u (oracle)": best, "u auto": stop}
    methods = {name: _row(before, curve[i], candidates[i], u=thresholds[i]) for name, i in picked.items()}
    methods["rounds"] = _row(before, rounds, in_rounds)
    return {
        "attack": known.attack, "dataset": known.dataset, "architecture": known.architecture, "poison_rate": known.poison_rate,
        "kind": record.target.kind, "true_target": record.target.target, "base_rate": before.base_rate,
        "methods": {name: {**one, "seconds": seconds.get(name, 0.0)} for name, one in methods.items()},
        "curve": [
            {**one.to_json(), "u": _finite(u), "acc": m.acc, "asr": m.asr, "ra": m.ra}
            for one, u, m in zip(tried, thresholds, curve, strict=True)
        ],
        "rounds": [one.to_json() for one in log],
        **found.to_json(),
        "torch": torch.__version__, "device": device,
    }  # fmt: skip


def _row(before: Metrics, after: Metrics, mask: Mask, *, u: float | None = None) -> Row:
    return {
        "acc": after.acc, "asr": after.asr, "ra": after.ra, "der": defense_effectiveness(before, after),
        "pruned": len(mask), "u": _finite(u),
    }  # fmt: skip


def _finite(u: float | None) -> float | None:
    return None if u is None or math.isinf(u) else u


def as_used(row: Row, method: str) -> Row:
    """What a method does to a record: behind the gate, nothing where the gate is not passed."""
    gated = method in GATED and not row["accepted"]
    used: Row = row["methods"]["before" if gated else method]
    return used


def tables(rows: Sequence[Row]) -> str:
    """Infected networks, networks without a working backdoor, and the gate, in Markdown."""
    done = [row for row in rows if "error" not in row]
    works = [row for row in done if row["methods"]["before"]["asr"] - row["base_rate"] >= BACKDOOR_MARGIN]
    idle = [row for row in done if row not in works]
    lines = [_table(f"{len(works)} networks with a working backdoor", works)] if works else []
    if works:
        single = [row for row in works if row["true_target"] is not None]
        right = sum(row["target"] == row["true_target"] for row in single)
        lines.append(
            f"Class named right: {right} of {len(single)} (one target); gate passed: {_share(works)}, with the right class: "
            f"{sum(row['accepted'] and row['target'] == row['true_target'] for row in single)} of {len(single)}. "
            f"Mean DER past the gate: {_means(works, past_gate=True)}."
        )
    if idle:
        lines.append(_table(f"{len(idle)} networks without a working backdoor", idle))
        lines.append(f"False alarms of the gate: {_share(idle)}. Mean loss of ACC past it: {_losses(idle)}.")
    lines += [f"failed: {row['record']}: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join(lines)


def _share(rows: Sequence[Row]) -> str:
    return f"{sum(row['accepted'] for row in rows)} of {len(rows)}"


def _means(rows: Sequence[Row], *, past_gate: bool) -> str:
    return ", ".join(
        f"{name} {np.mean([(row['methods'][name] if past_gate else as_used(row, name))['der'] for row in rows]):.3f}"
        for name in METHODS[1:]
    )


def _losses(rows: Sequence[Row]) -> str:
    lost = {
        name: [row["methods"]["before"]["acc"] - row["methods"][name]["acc"] for row in rows] for name in METHODS[1:]
    }
    return ", ".join(f"{name} {100 * np.mean(values):.1f}" for name, values in lost.items())


def _table(title: str, rows: Sequence[Row]) -> str:
    """ACC / ASR / RA in percent and channels, the class that was named, the gate's numbers, seconds."""
    lines = [
        f"**{title}**: ACC / ASR / RA in percent (channels pruned)\n",
        f"| record | {' | '.join(METHODS)} | class named | patch, s | gate | seconds |",
        f"|---|{'--:|' * len(METHODS)}---|---|---|--:|",
    ]
    for row in rows:
        used = [as_used(row, name) for name in METHODS]
        cells = [f"{100 * r['acc']:.1f} / {100 * r['asr']:.1f} / {100 * r['ra']:.1f} ({r['pruned']})" for r in used]
        truth = row["kind"] if row["true_target"] is None else row["true_target"]
        named = f"{row['target']}" if row["target"] == truth else f"{row['target']} (true: {truth})"
        size = f"{row['patch']['size']}x{row['patch']['size']}, {row['patch']['success']:.0%}"
        gate = "passed" if row["accepted"] else "not passed"
        cells += [named, size, gate, f"{row['methods']['rounds']['seconds']:.0f}"]
        lines.append(f"| {Path(row['record']).name} | {' | '.join(cells)} |")
    means = [float(np.mean([as_used(row, name)["der"] for row in rows])) for name in METHODS]
    return "\n".join([*lines, f"| mean DER | {' | '.join(f'{mean:.3f}' for mean in means)} | | | | |"])


def read_rows(path: Path) -> list[Row]:
    """The latest line of each record and seed, in the order of the file; a line that a crash cut short is passed over."""
    found: dict[tuple[object, ...], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[_key(row)] = row
    return list(found.values())


def _key(row: Row) -> tuple[object, ...]:
    return row["record"], row["seed"], row["images"]


def add_row(path: Path, row: Row) -> None:
    """Append a line, on a line of its own even behind one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        broken = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if broken else b"") + json.dumps(finite(row), allow_nan=False).encode() + b"\n")


def run(folders: Iterable[Path], out: Path, *, data: Path | None, device: str, seed: int, images: int | None) -> None:
    """Measure what is not there yet."""
    measured = {_key(row) for row in read_rows(out) if "error" not in row}
    for folder in folders:
        row: Row = {"record": str(folder.resolve()), "seed": seed, "images": images}
        if _key(row) in measured:
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
    parser.add_argument("records", nargs="*", type=Path, help="folders of records; none: only the tables")
    parser.add_argument("--out", type=Path, required=True, help="the file of lines")
    parser.add_argument("--data", type=Path, help="where the data set lies of records without images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", type=int, help="judge by the first so many clean test images and their triggered twins"
    )
    options = parser.parse_args()
    run(
        sorted(options.records), options.out, data=options.data, device=options.device, seed=options.seed,
        images=options.images,
    )  # fmt: skip
    print(tables(read_rows(options.out)))


if __name__ == "__main__":
    main()
