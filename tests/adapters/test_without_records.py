"""The function that docs/adapters.md shows for libraries that keep no records, on a classifier of ART."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clp_plugin import Mask

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"


@pytest.fixture
def repair() -> Callable[..., Mask]:
    if not DOCS.is_file():
        pytest.skip("needs the checkout's docs")
    shown = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[-1]
    names: dict[str, Callable[..., Mask]] = {}
    exec(shown, names)
    return names["repair"]


def network() -> nn.Module:
    """Channel 2 of the convolution is ten times as strong as the others."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    with torch.no_grad():
        model[0].weight[2] *= 10
    return model


def test_a_classifier_is_repaired_in_place_and_predicts_without_the_channel(repair: Callable[..., Mask]) -> None:
    estimators = pytest.importorskip(
        "art.estimators.classification", reason="needs adversarial-robustness-toolbox", exc_type=ImportError
    )
    model = network()
    classifier = estimators.PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 8, 8), nb_classes=4, preprocessing=(0.5, 0.25)
    )
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    before = classifier.predict(images)
    mask = repair(classifier, u=2.0)
    assert mask.indices() == {"1": [2]}
    assert classifier.model is model
    after = classifier.predict(images)
    assert not np.allclose(before, after)
    head = model[5]
    with torch.no_grad():
        head.weight[:, 2] = 0  # so the silenced channel adds its bias of 0, and nothing else
    assert np.allclose(classifier.predict(images), after, atol=1e-6)
