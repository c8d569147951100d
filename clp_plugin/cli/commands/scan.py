"""``bench scan``: one suspicious checkpoint, no data."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from clp_plugin.cli.commands.searching import choose_threshold
from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.cli.options import parse_u
from clp_plugin.cli.requests import ScanRequest
from clp_plugin.defenses.clp import CLP
from clp_plugin.errors import CheckpointError, ConfigError, PairingError
from clp_plugin.files.atomic import filled_folder
from clp_plugin.files.checkpoints import require_weights_suffix, save_weights
from clp_plugin.files.marks import weights_to_write
from clp_plugin.files.option_values import parse_numbers, parse_options
from clp_plugin.files.places import inputs_kept
from clp_plugin.files.shards import find_index
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.verification import verify
from clp_plugin.fusion.view import FusedView
from clp_plugin.masking.apply import masked, save_mask
from clp_plugin.networks.devices import pick_device
from clp_plugin.networks.loading import LoadedNetwork, Shape, load_network
from clp_plugin.records.opening import open_network
from clp_plugin.records.parts import normalization
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import is_constant, outliers, parse_layers, select, z_scores
from clp_plugin.types import LayerKind, Mask, Scores

_CHECKPOINT_OPTIONS = ("arch_option", "key", "strict", "num_classes", "input_size", "mean", "std")
_SHOWN = 6  # channels of a layer, or layers of a note


@dataclass(frozen=True)
class _Subject:
    """The network that is scanned.

    Attributes:
        model: The network, in eval mode.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of its normalization for each channel, on the [0, 1] scale.
        std: Standard deviation of that normalization, per channel, on the [0, 1] scale.
        loaded: How a checkpoint became the network; None for a record's.
    """

    model: nn.Module
    input_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loaded: LoadedNetwork | None


def scan_checkpoint(request: ScanRequest, *, as_json: bool) -> None:
    """Score, select, write what was asked for, print."""
    with inputs_kept(request.checkpoint):
        _scan(request, as_json=as_json)


def _scan(request: ScanRequest, *, as_json: bool) -> None:
    subject = _load(request)
    loaded, shape = subject.loaded, subject.input_shape
    if request.repair is not None:
        _require_place(request.repair, loaded)
    try:
        view = fuse(subject.model, shape, pairing="registration" if request.parity else "dataflow")
    except PairingError as error:
        guessed = f"; guessed: {'; '.join(loaded.guessed)}" if loaded is not None and loaded.guessed else ""
        raise PairingError(f"{error}{guessed}") from error
    start = time.perf_counter()
    scores = score(view, score=request.score, norm=request.norm)
    u = CLP.u if request.u is None else parse_u(request.u)
    layers = parse_layers(request.layers)
    found: dict[str, Any] = {}
    if u == "auto":
        chosen = choose_threshold(
            view, scores, shape, mean=subject.mean, std=subject.std, layers=layers, seed=request.seed,
            device=pick_device(request.device),
        )  # fmt: skip
        u, mask, found = chosen.u, chosen.mask, {"surrogate": chosen.to_json()}
    else:
        mask = select(scores, u, layers=layers)
    seconds = time.perf_counter() - start
    report: dict[str, Any] = {"u": u, "seconds": seconds, "layers": layer_entries(view, scores, mask), **found}
    report["not_scored"] = [{"name": name, "why": why} for name, why in view.left_out().items()]
    if loaded is not None:
        report["loaded"] = loaded.facts()
        for line in loaded.notes():
            say(f"{request.checkpoint.name}: {line}")
    if request.verify:
        report["verified"] = _verified(view, shape)
    if request.repair is not None:
        _repair(masked(subject.model, mask, verify=None if request.parity else shape), loaded, request.repair)
    folder = request.out or (None if as_json else Path("runs") / "scan" / request.checkpoint.stem)
    if folder is not None:
        _write(folder, scores, mask, u, report)
    if as_json:
        emit_json(report)
    else:
        _show(request, view, scores, mask, u)
    note_layers(view, layers, scores)


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


def _load(request: ScanRequest) -> _Subject:
    """The network of a record's folder, which says all itself, or of a checkpoint, as the options say."""
    if request.arch is None and request.checkpoint.is_dir() and find_index(request.checkpoint) is None:
        for name in _CHECKPOINT_OPTIONS:
            if getattr(request, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no meaning for a record; leave it out, or give --arch too"
                )
        recorded = open_network(request.checkpoint, trust=request.trust)
        return _Subject(
            recorded.model, recorded.input_shape, recorded.provenance.mean, recorded.provenance.std, loaded=None
        )
    network = load_network(
        request.checkpoint,
        arch=request.arch,
        key=request.key,
        options=parse_options(request.arch_option, flag="--arch-option"),
        num_classes=request.num_classes,
        input_shape=None if request.input_size is None else parse_shape(request.input_size),
        trust=request.trust,
        strict=request.strict,
    )
    mean, std = normalization(
        parse_numbers(request.mean, flag="--mean"), parse_numbers(request.std, flag="--std"), network.input_shape[0]
    )
    return _Subject(network.model, network.input_shape, mean, std, network)


def _require_place(repair: Path, loaded: LoadedNetwork | None) -> None:
    """A place that cannot be written to is told before the work."""
    if loaded is not None:
        loaded.require_place(repair)
    else:
        require_weights_suffix(repair)
        weights_to_write(repair)


def _repair(model: nn.Module, loaded: LoadedNetwork | None, path: Path) -> None:
    if loaded is None:
        save_weights(model.state_dict(), path, marked=True)
    else:
        loaded.save(model, path)
    say(f"wrote the repaired checkpoint to {path}")


def parse_shape(text: str) -> tuple[int, int, int]:
    """``C,H,W`` as three positive numbers.

    Raises:
        ConfigError: If it is anything else.
    """
    try:
        channels, height, width = (int(part) for part in text.split(","))
        if min(channels, height, width) < 1:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--input-size: expected C,H,W such as 3,32,32; found {text!r}") from None
    return channels, height, width


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


def _write(folder: Path, scores: Scores, mask: Mask, u: float, report: Mapping[str, Any]) -> None:
    from clp_plugin.reports.figures import channel_scores_figure, save_figure
    from clp_plugin.reports.tables import to_csv

    rows = [
        {"layer": entry["name"], "kind": entry["kind"], "channel": k, "sigma": sigma, "pruned": k in entry["pruned"]}
        for entry in report["layers"]
        for k, sigma in enumerate(entry["sigma"])
    ]
    with filled_folder(folder):
        to_csv(rows, folder / "scores.csv")
        save_mask(mask, folder / "mask.json")
        save_figure(channel_scores_figure(scores, mask, u if math.isfinite(u) else None), folder / "scores")
    say(f"wrote scores.csv, mask.json, scores.png and scores.pdf to {folder}")


def _show(request: ScanRequest, view: FusedView, scores: Scores, mask: Mask, u: float) -> None:
    rows: list[tuple[object, ...]] = []
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
