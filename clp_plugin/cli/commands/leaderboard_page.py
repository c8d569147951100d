"""``bench leaderboard page``: all that was run, and what is known of the records, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clp_plugin.cli.commands.chosen import choose, plain_rows
from clp_plugin.cli.console import emit_json, say
from clp_plugin.errors import ClpError
from clp_plugin.files.atomic import write_text_atomically
from clp_plugin.records.opening import find_adapter, lending
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.store.analyses import channel_table, sweep_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clp_plugin.reports.page.studies import RecordStudy
    from clp_plugin.types import ImageSet, Provenance

_SAMPLES = 4  # pairs of images a record


def write_page(
    folders: Sequence[Path],
    out: Path,
    *,
    title: str,
    where: Sequence[str],
    images: bool,
    data: Path | None,
    as_json: bool,
) -> None:
    """Write the page; what ``bench correlate`` and ``bench sweep`` stored with a record is on it, and a few of its images."""
    from clp_plugin.reports.page.build import page_html

    chosen = choose(folders, where)
    studies = [_study(record) for record in chosen.records]
    if images:
        studies = _with_samples(studies, data)
    html = page_html(chosen.outcomes, studies, title=title)
    write_text_atomically(out, html)
    if as_json:
        size = len(html.encode("utf-8"))
        emit_json({"page": str(out), "runs": len(chosen.outcomes), "records": len(studies), "bytes": size})
    else:
        say(f"wrote {len(chosen.outcomes)} runs on {len(studies)} records to {out}")


def _study(record: str) -> RecordStudy:
    from clp_plugin.reports.page.studies import RecordStudy

    sweep = sweep_table(Path(record))
    return RecordStudy(record, channel_table(Path(record)), [] if sweep is None else plain_rows(sweep))


def _with_samples(studies: Sequence[RecordStudy], data: Path | None) -> list[RecordStudy]:
    """The same with a few images of each record that is still there and opens without trust."""
    catalogue = load_catalogue()
    found, refused = [], []
    for study in studies:
        try:
            images = _samples(Path(study.record), catalogue, data) if Path(study.record).is_dir() else []
        except ClpError as error:
            images = []
            refused.append(f"{study.record}: {error}")
        found.append(replace(study, images=images))
    if refused:
        say(f"no images of {len(refused)} records that do not open as they are, such as {refused[0]}")
    return found


def _samples(
    folder: Path, catalogue: Catalogue, data: Path | None
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Clean test images and their triggered twins."""
    record = lending(find_adapter(folder, toolbox=None, catalogue=catalogue), folder, data).open(folder)
    picks = np.arange(min(_SAMPLES, len(record.triggered.images)))
    clean, triggered = record.clean.take(record.triggered.clean_index[picks]), record.triggered.images.take(picks)
    return list(zip(*(_pixels(images, record.provenance) for images in (clean, triggered)), strict=True))


def _pixels(images: ImageSet, provenance: Provenance) -> NDArray[np.uint8]:
    """``(N, C, H, W)`` grey levels of what the network is given."""
    mean, std = (np.asarray(values).reshape(1, -1, 1, 1) for values in (provenance.mean, provenance.std))
    inputs = np.concatenate([batch.numpy() for batch in images.batches(_SAMPLES)])
    levels: NDArray[np.uint8] = np.clip(np.rint(255 * (inputs * std + mean)), 0, 255).astype(np.uint8)
    return levels
