"""``bench record``: a record of one's own network, images and trigger."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clp_plugin.adapters.parts.making import make_record
from clp_plugin.adapters.parts.record import PartsAdapter
from clp_plugin.adapters.parts.request import PartsRequest
from clp_plugin.cli.commands.attack import note_if_it_did_not_take
from clp_plugin.cli.commands.subject import parse_shape
from clp_plugin.cli.console import emit_json, percent, say
from clp_plugin.cli.requests import RecordRequest
from clp_plugin.cli.showing import show_metrics
from clp_plugin.errors import ConfigError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.files.atomic import filled_folder
from clp_plugin.files.option_values import parse_numbers, parse_options
from clp_plugin.files.places import inputs_kept
from clp_plugin.images import Pixels
from clp_plugin.networks.devices import pick_device
from clp_plugin.records.opening import load_adapter
from clp_plugin.records.parts import TOOLBOX
from clp_plugin.registry import load_catalogue
from clp_plugin.types import ImageSet, Ints, Metrics, Record

SHEET = "trigger"
_SHOWN = 8
_LOW_ACCURACY = 0.5


def record_parts(request: RecordRequest, *, as_json: bool) -> None:
    """Make the record, measure the attacked network, show the trigger."""
    device = pick_device(request.device)
    adapter = _adapter(request)
    given = (
        request.checkpoint,
        request.images,
        request.labels,
        request.trigger,
        request.trigger_mask,
        request.triggered,
    )
    with inputs_kept(*(path for path in given if path is not None and path.exists())):
        network = make_record(_parts(request), request.out, adapter=adapter, force=request.force)
    record = adapter.open(request.out, trust=request.trust)
    metrics = evaluate(record.model, record, device=device)
    with filled_folder(request.out):
        _draw(record, request.out)
    for line in network.notes():
        say(f"{request.checkpoint.name}: {line}")
    _note_if_it_does_not_work(metrics)
    if as_json:
        emit_json(
            {
                "record": str(request.out),
                "input_shape": list(record.input_shape),
                "num_classes": record.target.num_classes,
                "n_benign": len(record.benign),
                "loaded": network.facts(),
                **metrics.to_json(),
            }
        )
        return
    show_metrics(f"attacked network in {request.out}, {record.target}", {record.provenance.attack: metrics})
    say(
        f"{metrics.n_clean} test images, {metrics.n_triggered} triggered, {len(record.benign)} for defenses that need some; "
        f"wrote {adapter.description}, {SHEET}.png and {SHEET}.pdf to {request.out}"
    )


def _adapter(request: RecordRequest) -> PartsAdapter:
    adapter = load_adapter(load_catalogue(request.registry), request.toolbox or TOOLBOX)
    if not isinstance(adapter, PartsAdapter):
        raise ConfigError(
            f"--toolbox {request.toolbox}: its records need no description; open them as they are (bench list records)"
        )
    return adapter


def _parts(request: RecordRequest) -> PartsRequest:
    return PartsRequest(
        checkpoint=request.checkpoint,
        images=request.images,
        target=request.target,
        trigger=request.trigger,
        trigger_mask=request.trigger_mask,
        at=request.at,
        blend=request.blend,
        add=request.add,
        triggered=request.triggered,
        arch=request.arch,
        arch_options=parse_options(request.arch_option, flag="--arch-option"),
        key=request.key,
        strict=request.strict,
        num_classes=request.num_classes,
        labels=request.labels,
        input_shape=None if request.input_size is None else parse_shape(request.input_size),
        mean=parse_numbers(request.mean, flag="--mean"),
        std=parse_numbers(request.std, flag="--std"),
        n_test=request.n_test,
        n_benign=request.n_benign,
        seed=request.seed,
        copy=request.copy,
        attack=request.attack,
        dataset=request.dataset,
        poison_rate=request.poison_rate,
        trust=request.trust,
    )


def _note_if_it_does_not_work(metrics: Metrics) -> None:
    if metrics.acc < _LOW_ACCURACY:
        say(
            f"note: ACC {percent(metrics.acc)}: are --mean, --std, --input-size and the order of the classes those that the "
            "network was trained with?"
        )
    note_if_it_did_not_take(metrics, "is the trigger the attacker's, in its place, and --target the class it leads to?")


def _draw(record: Record, folder: Path) -> None:
    """The first triggered images beside their clean twins, and what changed."""
    from clp_plugin.reports.figures import example_images_figure, save_figure

    shown = np.arange(min(_SHOWN, len(record.triggered.clean_index)))
    true = record.triggered.images.labels[shown]
    captions = [f"{was} → {wanted}" for was, wanted in zip(true, record.target.wanted(true), strict=True)]
    clean = _pixels(record, record.clean, record.triggered.clean_index[shown])
    triggered = _pixels(record, record.triggered.images, shown)
    save_figure(example_images_figure(clean, triggered, captions=captions), folder / SHEET)


def _pixels(record: Record, images: ImageSet, positions: Ints) -> Pixels:
    """Grey levels of images as they were before normalization."""
    (batch,) = images.take(positions).batches(len(positions))
    std, mean = (np.reshape(values, (1, -1, 1, 1)) for values in (record.provenance.std, record.provenance.mean))
    pixels: Pixels = np.rint((batch.numpy() * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return pixels
