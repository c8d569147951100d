"""Which score ranks channels as the trigger does, and what it costs: paper, exact operator norm, relative.

    python benchmarks/rankings.py RECORD [RECORD ...]

Records as made by ``bench attack`` or ``bench demo``. TAC needs the trigger: this judges scores, it repairs nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

import numpy as np

from clp_plugin.evidence.correlation import correlate
from clp_plugin.evidence.sweep import sweep
from clp_plugin.evidence.tac import trigger_activated_change
from clp_plugin.fusion.layers import fuse
from clp_plugin.records.opening import open_record
from clp_plugin.scoring.lipschitz import score
from clp_plugin.types import NormKind, ScoreKind

U = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    options = parser.parse_args()
    print(
        "| record | score | norm | seconds | median Pearson of layers | median Spearman | pooled Spearman "
        "| ACC / ASR / RA at u = 3 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in options.records:
        record = open_record(path)
        view = fuse(record.model, record.input_shape)
        tac = trigger_activated_change(view, record)
        for kind in get_args(ScoreKind):
            for norm in get_args(NormKind):
                start = time.perf_counter()
                scores = score(view, score=kind, norm=norm)
                seconds = time.perf_counter() - start
                found = correlate(scores, tac, bootstrap=1)
                layers = [entry for entry in found.layers if entry.name not in scores.heads and not entry.reason]
                row = sweep(record, scores, [U])[0]
                print(
                    f"| {path.name} | {kind} | {norm} | {seconds:.3f} | {np.median([e.pearson for e in layers]):.2f} "
                    f"| {np.median([e.spearman for e in layers]):.2f} | {found.pooled.spearman:.2f} "
                    f"| {100 * row.acc:.1f} / {100 * row.asr:.1f} / {100 * row.ra:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
