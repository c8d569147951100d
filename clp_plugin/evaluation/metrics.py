"""Accuracy, attack success, recovered accuracy: one function that anyone can audit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.errors import RecordError
from clp_plugin.networks.outputs import logits_of
from clp_plugin.types import ImageSet, Ints, Metrics, Progress, Record


@dataclass(frozen=True)
class Judgement:
    """The measured behaviour of one network on a record's test images.

    Attributes:
        metrics: ACC, ASR, RA and the base rate.
        clean_loss: Mean over batches of the batch's mean cross-entropy on clean images and true labels.
        triggered_loss: Mean over batches of the batch's mean cross-entropy on triggered images and the attacker's labels.
    """

    metrics: Metrics
    clean_loss: float
    triggered_loss: float


def evaluate(
    model: nn.Module,
    record: Record,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Metrics:
    """Judge a model on a record's test images; the metrics of :func:`judge`.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from clp_plugin import evaluate, record_from
        >>> from clp_plugin.records.triggers import Trigger
        >>> white = Trigger.patch(np.full((1, 2, 2), 255.0), shape=(3, 4, 4), at="bottom-right")
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> record = record_from(model, np.zeros((6, 3, 4, 4), np.uint8), np.arange(6) % 2, trigger=white, target=0)
        >>> evaluate(record.model, record).n_clean
        6
    """
    return judge(model, record, device=device, batch_size=batch_size, progress=progress).metrics


def judge(
    model: nn.Module,
    record: Record,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Judgement:
    """Judge a model on a record's test images.

    Args:
        model: The attacked or the repaired model; takes the record's normalized images and returns logits, by themselves
            or in a tuple, dictionary or dataclass (:func:`clp_plugin.networks.outputs.logits_of`).
        record: Supplies clean and triggered test images and the target rule.
        device: The device to run on.
        batch_size: Images per forward pass; the losses depend on it, as the toolbox's do.
        progress: Called with images done and images in all.

    Raises:
        RecordError: If there are no test images or none that count for ASR.

    Source:
        CLP 5.1.3; ``base_rate`` (clean twins already called the target) as design.md asks.
    """
    require_test_images(record)
    done, total = 0, len(record.clean) + len(record.triggered.images)

    def tick(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    triggered = record.triggered.images
    wanted = record.target.wanted(triggered.labels)
    clean, clean_loss = _classes(model, record.clean, record.clean.labels, device, batch_size, tick)
    found, triggered_loss = _classes(model, triggered, wanted, device, batch_size, tick)
    return Judgement(metrics_of(record, clean, found), clean_loss, triggered_loss)


def require_test_images(record: Record) -> None:
    """Refuse a record on which nothing can be measured.

    Raises:
        RecordError: If there are no test images or none that count for ASR.
    """
    counted = record.target.counted(record.triggered.images.labels)
    if len(record.clean) == 0 or not counted.any():
        raise RecordError(
            f"{record.provenance.path}: expected clean test images and triggered ones whose true label is not the target, "
            f"found {len(record.clean)} and {int(counted.sum())}"
        )


def metrics_of(record: Record, clean: Ints, triggered: Ints) -> Metrics:
    """Metrics from the class that a model gives each image.

    Args:
        record: Supplies true labels, pairing and target rule.
        clean: Classes of the clean test images, ``(N,)``.
        triggered: Classes of the triggered images, ``(M,)``.
    """
    true = record.triggered.images.labels
    counted, wanted = record.target.counted(true), record.target.wanted(true)
    twins = clean[record.triggered.clean_index]
    return Metrics(
        acc=float((clean == record.clean.labels).mean()),
        asr=float((triggered == wanted)[counted].mean()),
        ra=float((triggered == true)[counted].mean()),
        base_rate=float((twins == wanted)[counted].mean()),
        n_clean=len(clean),
        n_triggered=int(counted.sum()),
    )


def _classes(
    model: nn.Module, images: ImageSet, labels: Ints, device: str, batch_size: int, tick: Callable[[int], object]
) -> tuple[Ints, float]:
    """Class of every image ``(N,)``, and the mean over batches of the mean cross-entropy with ``labels`` ``(N,)``."""
    model = model.to(device).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    found: list[Ints] = []
    losses: list[float] = []
    start = 0
    with torch.inference_mode():
        for batch in images.batches(batch_size):
            wanted = torch.from_numpy(labels[start : start + len(batch)]).to(device)
            start += len(batch)
            logits = logits_of(model(batch.to(device, dtype)))
            found.append(logits.argmax(dim=1).cpu().numpy().astype(np.int64))
            fits = labels.max() < logits.shape[1]  # a network with too few classes is wrong, not an error
            losses.append(float(F.cross_entropy(logits.float(), wanted)) if fits else math.nan)
            tick(len(batch))
    return np.concatenate(found), float(np.mean(losses))
