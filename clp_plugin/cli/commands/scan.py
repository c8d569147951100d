"""``bench scan``: one suspicious checkpoint, no data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.cli.option_values import parse_options
from clp_plugin.cli.requests import ScanRequest
from clp_plugin.errors import CheckpointError, ConfigError, PairingError
from clp_plugin.files.atomic import filled_folder
from clp_plugin.files.checkpoints import require_weights_suffix, save_weights
from clp_plugin.files.marks import weights_to_write
from clp_plugin.files.places import inputs_kept
from clp_plugin.files.shards import find_index
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.verification import verify
from clp_plugin.fusion.view import FusedView
from clp_plugin.masking.apply import masked, save_mask
from clp_plugin.networks.loading import LoadedNetwork, Shape, load_network
from clp_plugin.records.opening import open_record
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select, z_scores
from clp_plugin.types import Mask, Scores

DEFAULT_U = 3.0


def scan_checkpoint(request: ScanRequest, *, as_json: bool) -> None:
    """Score, select, write what was asked for, print."""
    with inputs_kept(request.checkpoint):
        _scan(request, as_json=as_json)


def _scan(request: ScanRequest, *, as_json: bool) -> None:
    model, shape, loaded = _load(request)
    if request.repair is not None:
        _require_place(request.repair, loaded)
    try:
        view = fuse(model, shape, pairing="registration" if request.parity else "dataflow")
    except PairingError as error:
        guessed = f"; guessed: {'; '.join(loaded.guessed)}" if loaded is not None and loaded.guessed else ""
        raise PairingError(f"{error}{guessed}") from error
    start = time.perf_counter()
    scores = score(view, score=request.score, norm=request.norm)
    u = DEFAULT_U if request.u is None else request.u
    mask = select(scores, u)
    seconds = time.perf_counter() - start
    report: dict[str, Any] = {"u": u, "seconds": seconds, "layers": layer_entries(view, scores, mask)}
    if loaded is not None:
        report["loaded"] = loaded.facts()
        for line in loaded.notes():
            say(f"{request.checkpoint.name}: {line}")
    if request.verify:
        report["verified"] = _verified(view, shape)
    if request.repair is not None:
        _repair(masked(model, mask), loaded, request.repair)
    folder = request.out or (None if as_json else Path("runs") / "scan" / request.checkpoint.stem)
    if folder is not None:
        _write(folder, scores, mask, u, report)
    if as_json:
        emit_json(report)
    else:
        _show(request, view, scores, mask, u)


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


def _load(request: ScanRequest) -> tuple[nn.Module, Shape, LoadedNetwork | None]:
    """The model, the shape of its input, and how a checkpoint became it; a record's folder says all itself."""
    if request.arch is None and request.checkpoint.is_dir() and find_index(request.checkpoint) is None:
        record = open_record(request.checkpoint, trust=request.trust)
        return record.model, record.input_shape, None
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
    return network.model, network.input_shape, network


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
        save_figure(channel_scores_figure(scores, mask, u), folder / "scores")
    say(f"wrote scores.csv, mask.json, scores.png and scores.pdf to {folder}")


def _show(request: ScanRequest, view: FusedView, scores: Scores, mask: Mask, u: float) -> None:
    rows = []
    for layer in view.layers:
        z = z_scores(scores.sigma[layer.name], unbiased=request.parity)
        found = mask.indices().get(layer.name, [])
        listed = ", ".join(f"{k} ({z[k]:.1f})" for k in sorted(found, key=lambda k: -z[k])[:6])
        rows.append(
            (
                layer.name,
                layer.kind,
                layer.channels,
                float(z.max(initial=0.0)),
                listed + (", ..." if len(found) > 6 else ""),
            )
        )
    show_table(
        f"{request.checkpoint}: channels above mean + {u:g} std ({len(mask)} of {sum(v.size for v in mask.pruned.values())})",
        ("layer", "kind", "channels", "largest z", "outlying channels (z)"),
        rows,
    )
    prunable = [layer for layer in view.layers if layer.kind != "head"]
    if not prunable:
        say("note: no layer of this model can be pruned")
    for name in view.unreached:
        say(f"note: {name} is never executed and was not scored")
