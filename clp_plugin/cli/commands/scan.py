"""``bench scan``: one suspicious checkpoint, no data."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clp_plugin.cli.commands.searching import (
    choose_threshold,
    repair_by_surrogate,
    show_surrogate,
    write_surrogate,
)
from clp_plugin.cli.commands.subject import Subject, load_subject, require_place, write_repaired
from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.cli.options import parse_u
from clp_plugin.cli.requests import ScanRequest
from clp_plugin.defenses.clp import CLP
from clp_plugin.errors import CheckpointError, PairingError
from clp_plugin.files.atomic import filled_folder
from clp_plugin.files.places import inputs_kept
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.verification import verify
from clp_plugin.fusion.view import FusedView
from clp_plugin.masking.apply import masked, save_mask
from clp_plugin.networks.devices import pick_device
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import is_constant, outliers, parse_layers, select, z_scores
from clp_plugin.surrogate.choosing import ChosenThreshold
from clp_plugin.surrogate.finding import require_searchable
from clp_plugin.surrogate.repairing import SurrogateRepair
from clp_plugin.types import LayerKind, Mask, Scores

_SHOWN = 6  # channels of a layer, or layers of a note


@dataclass(frozen=True)
class _Choice:
    """What is pruned, and why.

    Attributes:
        mask: The channels.
        u: The threshold that they lie above; None where no threshold was used.
        sought: The trigger that was sought with no data, and what follows from it; None where none was.
    """

    mask: Mask
    u: float | None
    sought: ChosenThreshold | SurrogateRepair | None = None


def scan_checkpoint(request: ScanRequest, *, as_json: bool) -> None:
    """Score, select, write what was asked for, print."""
    with inputs_kept(request.checkpoint):
        _scan(request, as_json=as_json)


def _scan(request: ScanRequest, *, as_json: bool) -> None:
    subject = load_subject(request)
    loaded, shape = subject.loaded, subject.input_shape
    if request.repair is not None:
        require_place(request.repair, loaded)
    try:
        view = fuse(subject.model, shape, pairing="registration" if request.parity else "dataflow")
    except PairingError as error:
        guessed = f"; guessed: {'; '.join(loaded.guessed)}" if loaded is not None and loaded.guessed else ""
        raise PairingError(f"{error}{guessed}") from error
    start = time.perf_counter()
    scores = score(view, score=request.score, norm=request.norm)
    layers = parse_layers(request.layers)
    choice = _choose(request, subject, view, scores, layers)
    seconds = time.perf_counter() - start
    entries = layer_entries(view, scores, choice.mask)
    report: dict[str, Any] = {"u": choice.u, "seconds": seconds, "layers": entries}
    report["not_scored"] = [{"name": name, "why": why} for name, why in view.left_out().items()]
    if choice.sought is not None:
        report["surrogate"] = choice.sought.to_json()
    if loaded is not None:
        report["loaded"] = loaded.facts()
        for line in loaded.notes():
            say(f"{request.checkpoint.name}: {line}")
    if request.verify:
        report["verified"] = _verified(view, shape)
    if request.repair is not None:
        write_repaired(
            masked(subject.model, choice.mask, verify=None if request.parity else shape), loaded, request.repair
        )
    folder = request.out or (None if as_json else Path("runs") / "scan" / request.checkpoint.stem)
    if folder is not None:
        _write(folder, scores, choice, entries)
    if as_json:
        emit_json(report)
    elif isinstance(choice.sought, SurrogateRepair):
        show_surrogate(choice.sought, scores)
    else:
        _show(request, view, scores, choice)
    note_layers(view, layers, scores)


def _choose(
    request: ScanRequest, subject: Subject, view: FusedView, scores: Scores, layers: tuple[LayerKind, ...]
) -> _Choice:
    """The channels to prune, by the rule that was asked for."""
    u = CLP.u if request.u is None else parse_u(request.u)
    if not request.surrogate and u != "auto":
        return _Choice(select(scores, u, layers=layers), u)
    device = pick_device(request.device)
    require_searchable(subject.model, subject.input_shape)
    if subject.loaded is not None and request.mean is request.std is None:
        say(
            "taken for granted: the network wants pixels in [0, 1], mean 0, std 1; --mean and --std say what else it wants"
        )
    if request.surrogate:
        repair = repair_by_surrogate(
            view, subject.input_shape, mean=subject.mean, std=subject.std, seed=request.seed, device=device
        )
        return _Choice(repair.mask, None, repair)
    chosen = choose_threshold(
        view, scores, subject.input_shape, mean=subject.mean, std=subject.std, layers=layers, seed=request.seed,
        device=device,
    )  # fmt: skip
    return _Choice(chosen.mask, chosen.u if math.isfinite(chosen.u) else None, chosen)


def note_layers(view: FusedView, layers: Collection[LayerKind], scores: Scores | None = None) -> None:
    """Say, in a line each, what the chosen kinds of layers leave out."""
    counts = view.counts()
    if "conv" not in layers and counts["conv"] and not counts["fused"] + counts["diagonal"]:
        say("note: this network has no BatchNorm; its convolutions are pruned only with --layers fused,diagonal,conv")
    if scores is None or scores.score != "relative":
        return
    flat = [name for name in scores.prunable(layers) if is_constant(scores.sigma[name])]
    if flat:
        names = ", ".join(flat[:_SHOWN]) + (", ..." if len(flat) > _SHOWN else "")
        say(f"note: the relative score is the same for all channels of {names} and says nothing of them")


def layer_entries(view: FusedView, scores: Scores, mask: Mask) -> list[dict[str, Any]]:
    """The ``layers`` of ``bench scan --json``: one entry a layer, heads included."""
    pruned = mask.indices()
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "conv": layer.conv[0] if len(layer.conv) == 1 else list(layer.conv) or None,
            "norm": layer.norm,
            "channels": layer.channels,
            "sigma": scores.sigma[layer.name].tolist(),
            "pruned": pruned.get(layer.name, []),
        }
        for layer in view.layers
    ]


def _verified(view: FusedView, shape: tuple[int, int, int]) -> dict[str, Any]:
    found = verify(view, shape)
    if not found.passed:
        raise CheckpointError(
            f"the layers found do not stand the check on real tensors: relative error {found.error:.1e}, other channels "
            f"moved in {', '.join(found.wrong) or 'no layer'}; please report this architecture"
        )
    if found.replaced or found.perturbed:
        say(
            f"verified: fused kernels in place of all pairs ({found.replaced}) change the outputs by {found.error:.1e} at "
            f"most; each changed filter ({found.perturbed}) moves the channels that it should and no others"
        )
    else:
        say("nothing to verify: no convolution of this model is followed by a BatchNorm")
    return {"relative_error": found.error, "replaced": found.replaced, "perturbed": found.perturbed}


def _write(folder: Path, scores: Scores, choice: _Choice, entries: Sequence[Mapping[str, Any]]) -> None:
    from clp_plugin.reports.figures import channel_scores_figure, save_figure
    from clp_plugin.reports.tables import to_csv

    rows = [
        {"layer": entry["name"], "kind": entry["kind"], "channel": k, "sigma": sigma, "pruned": k in entry["pruned"]}
        for entry in entries
        for k, sigma in enumerate(entry["sigma"])
    ]
    with filled_folder(folder):
        to_csv(rows, folder / "scores.csv")
        save_mask(choice.mask, folder / "mask.json")
        save_figure(channel_scores_figure(scores, choice.mask, choice.u), folder / "scores")
        names = ["scores.csv", "mask.json", "scores.png", "scores.pdf"]
        if choice.sought is not None:
            names += write_surrogate(choice.sought.found, folder)
    say(f"wrote {', '.join(names[:-1])} and {names[-1]} to {folder}")


def _show(request: ScanRequest, view: FusedView, scores: Scores, choice: _Choice) -> None:
    rows: list[tuple[object, ...]] = []
    mask, u = choice.mask, math.inf if choice.u is None else choice.u
    for layer in view.layers:
        z = z_scores(scores.sigma[layer.name], unbiased=request.parity)
        found = np.flatnonzero(outliers(scores.sigma[layer.name], u, unbiased=request.parity)).tolist()
        listed = ", ".join(f"{k} ({z[k]:.1f})" for k in sorted(found, key=lambda k: -z[k])[:_SHOWN])
        listed += ", ..." if len(found) > _SHOWN else ""
        if found and layer.kind != "head" and layer.name not in mask.pruned:
            listed += f"; not pruned{': ' + layer.unprunable if layer.unprunable else ''}"
        rows.append((layer.name, layer.kind, layer.channels, float(z.max(initial=0.0)), listed))
    rows += [(name, "not scored", "", "", why) for name, why in view.unscored.items()]
    show_table(
        f"{request.checkpoint}: channels above mean + {u:g} std ({len(mask)} of {sum(v.size for v in mask.pruned.values())})",
        ("layer", "kind", "channels", "largest z", "outlying channels (z)"),
        rows,
    )
    if not any(layer.kind != "head" for layer in view.layers):
        say("note: no layer of this model can be pruned")
    if view.inner_linear:
        say(f"note: {len(view.inner_linear)} linear maps inside the network have no BatchNorm and were not scored")
    for name in view.unreached:
        say(f"note: {name} is never executed and was not scored")
