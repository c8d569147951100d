"""What a record keeps of each attack."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_attack import LEARNT, QUICK, run_attack, small_attack, stored

from clp_plugin.adapters.builtin.attacks.catalogue import ATTACKS, create_attack
from clp_plugin.adapters.builtin.datasets import load_dataset
from clp_plugin.adapters.builtin.poisoning import split
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.record_files import read_description, read_trigger
from clp_plugin.adapters.builtin.settings import AttackSettings
from clp_plugin.types import TargetRule

Recorded = Callable[..., Path]


def settings_of(name: str, target: int | None = 3) -> AttackSettings:
    return small_attack(name, target=target, crop_padding=1, attack_options=QUICK[name])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """``recorded(name, target)``: the folder of a record of that attack."""
    return cache(lambda *which: run_attack(settings_of(*which), tmp_path_factory.mktemp("runs") / "x"))


@pytest.mark.parametrize(("name", "target"), [*((name, 3) for name in sorted(QUICK)), ("iab", None), ("wanet", None)])
def test_the_trigger_in_a_record_makes_its_triggered_images(name: str, target: int | None, recorded: Recorded) -> None:
    out = recorded(name, target)
    record, arrays = BuiltinAdapter().open(out), load_file(out / "images.safetensors")
    again = ATTACKS[name].from_json(read_description(out).trigger, read_trigger(out))
    clean = arrays["clean.pixels"][record.triggered.clean_index]
    assert record.provenance.attack == name
    assert np.array_equal(again.poison(clean), arrays["triggered.pixels"])
    assert not np.array_equal(clean, arrays["triggered.pixels"])
    if name in LEARNT:
        assert stored(again) != stored(create_attack(name, (3, 32, 32), seed=1, options=QUICK[name]))


@pytest.mark.parametrize(("name", "reach"), [("cla", 12), ("sig", 34)])
def test_the_record_of_a_clean_label_attack_shows_how_images_of_the_target_class_were_changed(
    name: str, reach: int, recorded: Recorded
) -> None:
    out = recorded(name, 3)
    record, arrays = BuiltinAdapter().open(out), load_file(out / "images.safetensors")
    dataset = load_dataset("digits", n_train=200, n_test=60, seed=1)
    parts = split(dataset.train_labels, TargetRule("all_to_one", 10, 3), settings_of(name), keeps_labels=True)
    clean, training = dataset.train_pixels[parts.train], arrays["training.pixels"]
    assert np.array_equal(arrays["training.labels"], dataset.train_labels[parts.train])
    assert np.array_equal(np.flatnonzero((training != clean).any(axis=(1, 2, 3))), parts.poisoned)
    middle = np.s_[:, :, 8:24, 8:24]  # where CLA has no patch
    assert reach - 2 <= np.abs(training[middle].astype(int) - clean[middle]).max() <= reach
    assert 3 not in record.triggered.images.labels
    assert 0.05 < record.provenance.poison_rate <= 0.1
