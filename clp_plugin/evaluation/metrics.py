"""Accuracy, attack success, recovered accuracy: one function that anyone can audit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from clp_plugin.errors import RecordError
from clp_plugin.networks.outputs import logits_of
from clp_plugin.types import ImageSet, Ints, Metrics, Progress, Record


def evaluate(
    model: nn.Module,
    record: Record,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Metrics:
    """Judge a model on a record's test images.

    Args:
        model: The attacked or the repaired model; takes the record's normalized images and returns logits, by themselves
            or in a tuple, dictionary or dataclass (:func:`clp_plugin.networks.outputs.logits_of`).
        record: Supplies clean and triggered test images and the target rule.
        device: Where to run.
        batch_size: Images per forward pass.
        progress: Called with images done and images in all.

    Raises:
        RecordError: If there are no test images or none that count for ASR.

    Source:
        CLP 5.1.3; ``base_rate`` (clean twins already called the target) as design.md asks.
    """
    total = len(record.clean) + len(record.triggered.images)
    require_test_images(record)
    clean = predict(model, record.clean, device, batch_size, progress and (lambda done: progress(done, total)))
    triggered = predict(
        model,
        record.triggered.images,
        device,
        batch_size,
        progress and (lambda done: progress(len(record.clean) + done, total)),
    )
    return metrics_of(record, clean, triggered)


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


def predict(
    model: nn.Module,
    images: ImageSet,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Ints:
    """Class of every image, ``(N,)`` int64; the model is left in eval mode on ``device``."""
    model = model.to(device).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    found: list[Ints] = []
    done = 0
    with torch.inference_mode():
        for batch in images.batches(batch_size):
            found.append(logits_of(model(batch.to(device, dtype))).argmax(dim=1).cpu().numpy().astype(np.int64))
            done += len(batch)
            if progress is not None:
                progress(done)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
