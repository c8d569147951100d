"""How ACC and ASR depend on u: scores once, each distinct mask once, shared layers once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from clp_plugin.errors import ConfigError
from clp_plugin.evaluation.many_masks import evaluate_masks
from clp_plugin.evaluation.metrics import Judgement, require_test_images
from clp_plugin.networks.copying import copy_of
from clp_plugin.selection.outliers import PRUNED_KINDS, select
from clp_plugin.types import LayerKind, Mask, Progress, Record, Scores

_LONGEST_SWEEP = 10_000  # values of u in one sweep; more is a slip of the keyboard


@dataclass(frozen=True)
class SweepRow:
    """Metrics of the model pruned at one u. The whole curve is measured on test images: choosing u by it is an oracle.

    Attributes:
        u: Threshold in standard deviations above a layer's mean.
        pruned: Number of channels.
        acc: Share of clean test images classified as their true label, in [0, 1].
        asr: Share of counted triggered images classified as the attacker wants, in [0, 1].
        ra: Share of the same images classified as their true label, in [0, 1].
        clean_loss: Mean over batches of the mean cross-entropy of clean images and true labels.
        triggered_loss: Mean over batches of the mean cross-entropy of triggered images and the attacker's labels.
    """

    u: float
    pruned: int
    acc: float
    asr: float
    ra: float
    clean_loss: float
    triggered_loss: float

    def to_json(self) -> dict[str, float | int]:
        """The attributes by name, as plain JSON values."""
        return asdict(self)


def sweep(
    record: Record,
    scores: Scores,
    values: Sequence[float],
    *,
    layers: Sequence[LayerKind] = PRUNED_KINDS,
    known: Mapping[Mask, Judgement] | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[SweepRow]:
    """Prune a record's model at every u and evaluate it.

    Args:
        record: The attacked model and its test images. The model is not touched: a copy is pruned.
        scores: Scores of that model.
        values: Values of u, 0 or more.
        layers: The kinds of layers to prune; see :func:`clp_plugin.selection.outliers.select`.
        known: Masks of this model that were judged already, at the same batch size; they are not run again.
        device: The device to run on.
        batch_size: Images per forward pass.
        progress: Called with batches under a mask done and in all; each distinct mask is run once.

    Returns:
        One row a value, in the given order.

    Source:
        CLP 5.3, figure 4.
    """
    require_test_images(record)
    masks = [select(scores, u, layers=layers) for u in values]
    found = dict(known or {})
    if unknown := list(dict.fromkeys(mask for mask in masks if mask not in found)):
        own = copy_of(record.model)
        judged = evaluate_masks(own, record, unknown, device=device, batch_size=batch_size, progress=progress)
        found.update(zip(unknown, judged, strict=True))
    return [_row(u, mask, found[mask]) for u, mask in zip(values, masks, strict=True)]


def _row(u: float, mask: Mask, judged: Judgement) -> SweepRow:
    m = judged.metrics
    return SweepRow(u, len(mask), m.acc, m.asr, m.ra, judged.clean_loss, judged.triggered_loss)


def parse_range(text: str) -> list[float]:
    """``first:last:step`` (both ends included) or a comma-separated list, as values of u.

    Raises:
        ConfigError: If it is neither, or a value is negative.
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if step <= 0 or last < first:
                raise ValueError
            if not math.isfinite(last) or (last - first) / step >= _LONGEST_SWEEP:
                raise ConfigError(f"u: {text!r} asks for more than {_LONGEST_SWEEP} values; give a larger step")
            count = int((last - first) / step + 1e-9) + 1
            values = [round(first + i * step, 10) for i in range(count)]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"u: expected FIRST:LAST:STEP or a list such as 1,2,3; found {text!r}") from error
    for value in values:
        if not value >= 0:
            raise ConfigError(f"u must be 0 or more, found {value}")
    return values
