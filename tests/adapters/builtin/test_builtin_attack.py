"""From settings to a record, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from small_attack import SMALL_BADNETS, run_attack

from clp_plugin.adapters.builtin import attack as attack_module
from clp_plugin.adapters.builtin.attack import CHECKPOINT, initial_model
from clp_plugin.adapters.builtin.attacks.badnets import BadNets
from clp_plugin.adapters.builtin.attacks.base import Attack
from clp_plugin.adapters.builtin.attacks.catalogue import ATTACKS
from clp_plugin.adapters.builtin.datasets import load_dataset
from clp_plugin.adapters.builtin.poisoning import TriggerHook, split
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.settings import AttackSettings
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.types import TargetRule


def test_the_parts_are_disjoint_seeded_and_of_the_sizes_of_the_paper() -> None:
    labels = np.arange(1000) % 10
    rule = TargetRule("all_to_one", 10, 3)
    parts = split(labels, rule, SMALL_BADNETS)
    assert (len(parts.train), len(parts.benign), len(parts.poisoned)) == (950, 10, 95)
    assert not set(parts.train) & set(parts.benign)
    assert len(set(parts.poisoned)) == 95
    assert 3 not in labels[parts.train][parts.poisoned]
    again, other = split(labels, rule, SMALL_BADNETS), split(labels, rule, replace(SMALL_BADNETS, seed=2))
    assert np.array_equal(parts.poisoned, again.poisoned)
    assert not np.array_equal(parts.train, other.train)


def test_a_clean_twin_has_the_images_and_the_trigger_and_learns_no_poisoned_image(made: Path, tmp_path: Path) -> None:
    twin = run_attack(replace(SMALL_BADNETS, poison_rate=0.0), tmp_path / "twin")
    attacked, clean = load_file(made / "images.safetensors"), load_file(twin / "images.safetensors")
    for name in ("clean.pixels", "triggered.pixels", "benign.pixels"):
        assert np.array_equal(attacked[name], clean[name])
    opened = BuiltinAdapter().open(twin)
    assert (opened.provenance.attack, opened.provenance.poison_rate) == ("clean", 0.0)
    # The kept training images of the attacked record differ in the poisoned ones only.
    differing = (attacked["training.pixels"] != clean["training.pixels"]).any(axis=(1, 2, 3))
    assert 0 < differing.sum() < 0.2 * len(differing)
    assert (clean["training.labels"] != attacked["training.labels"]).sum() == differing.sum()


def test_an_attack_that_is_trained_with_its_victim_has_no_clean_twin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no clean twin"):
        run_attack(replace(SMALL_BADNETS, method="iab", poison_rate=0.0), tmp_path / "twin")
    assert not (tmp_path / "twin").exists()


def test_a_rate_that_needs_more_images_than_there_are_is_told() -> None:
    labels = np.repeat([3, 4], [90, 10])
    with pytest.raises(ConfigError, match=r"asks for 48 images, but only \d+ of 95"):
        split(labels, TargetRule("all_to_one", 10, 3), replace(SMALL_BADNETS, poison_rate=0.5))


def test_too_few_images_are_told() -> None:
    with pytest.raises(ConfigError, match="20 training images are too few"):
        split(np.arange(20) % 10, TargetRule("all_to_one", 10, 3), SMALL_BADNETS)


def test_the_training_set_holds_the_trigger_and_the_wanted_labels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(attack_module, "train", lambda model, images, recipe, **_: seen.update(images=images))
    run_attack(SMALL_BADNETS, tmp_path / "x")
    dataset = load_dataset("digits", n_train=200, n_test=60, seed=1)
    parts = split(dataset.train_labels, TargetRule("all_to_one", 10, 3), SMALL_BADNETS)
    clean = dataset.train_pixels[parts.train]
    changed = np.flatnonzero((seen["images"].pixels != clean).any(axis=(1, 2, 3)))
    assert np.array_equal(changed, parts.poisoned)
    assert (seen["images"].labels[changed] == 3).all()
    kept = np.setdiff1d(np.arange(len(clean)), changed)
    assert np.array_equal(seen["images"].labels[kept], dataset.train_labels[parts.train][kept])


def test_all_to_all_moves_each_label_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(attack_module, "train", lambda model, images, recipe, **_: seen.update(images=images))
    settings = replace(SMALL_BADNETS, target=None)
    record = BuiltinAdapter().open(run_attack(settings, tmp_path / "x"))
    dataset = load_dataset("digits", n_train=200, n_test=60, seed=1)
    parts = split(dataset.train_labels, TargetRule("all_to_all", 10), settings)
    before = dataset.train_labels[parts.train][parts.poisoned]
    assert np.array_equal(seen["images"].labels[parts.poisoned], (before + 1) % 10)
    assert record.target == TargetRule("all_to_all", 10)
    assert len(record.triggered.images) == 60


def test_a_record_opens_as_what_was_attacked(made: Path) -> None:
    record = BuiltinAdapter().open(made)
    dataset = load_dataset("digits", n_train=200, n_test=60, seed=1)
    assert np.array_equal(record.clean.labels, dataset.test_labels)
    first = next(iter(record.clean.batches(60)))
    assert torch.allclose(first, torch.from_numpy(dataset.test_pixels).float() / 255 * 4 - 2, atol=1e-5)
    assert record.input_shape == (3, 32, 32)
    assert not record.model.training
    assert record.target == TargetRule("all_to_one", 10, 3)
    assert len(record.benign) == 2
    told = record.provenance
    assert (told.toolbox, told.attack, told.dataset) == ("builtin", "badnets", "digits")
    assert (told.architecture, told.architecture_options) == ("builtin:resnet18", {"width": 2, "blocks": [1, 1]})
    assert (told.poison_rate, told.seed, record.folder) == (0.1, 1, made)


def test_triggered_images_are_the_poisoned_twins_of_counted_clean_ones(made: Path) -> None:
    record = BuiltinAdapter().open(made)
    arrays = load_file(made / "images.safetensors")
    described = json.loads((made / "record.json").read_text())
    trigger = ATTACKS["badnets"].from_json(described["trigger"], {})
    twins = record.triggered.clean_index
    assert np.array_equal(arrays["triggered.pixels"], trigger.poison(arrays["clean.pixels"][twins]))
    assert np.array_equal(twins, np.flatnonzero(record.clean.labels != 3))
    assert np.array_equal(record.triggered.images.labels, record.clean.labels[twins])


def test_the_same_settings_twice_make_the_same_files(made: Path, tmp_path: Path) -> None:
    again = run_attack(SMALL_BADNETS, tmp_path / "again")
    for name in ("model.safetensors", "images.safetensors", "record.json"):
        assert (again / name).read_bytes() == (made / name).read_bytes()


def test_another_seed_makes_another_model(made: Path, tmp_path: Path) -> None:
    other = run_attack(replace(SMALL_BADNETS, seed=2), tmp_path / "other")
    weights = [load_weights(path / "model.safetensors")["conv1.weight"] for path in (made, other)]
    assert not torch.equal(*weights)


def test_a_finished_attack_leaves_only_the_record(made: Path) -> None:
    assert sorted(file.name for file in made.iterdir()) == ["images.safetensors", "model.safetensors", "record.json"]


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(11)
    first = initial_model(SMALL_BADNETS, 10)
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(1))
    second = initial_model(SMALL_BADNETS, 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_complete_record_is_replaced_only_by_force(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    other = replace(SMALL_BADNETS, seed=5)
    with pytest.raises(RecordError, match="holds a complete record"):
        run_attack(other, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    run_attack(other, folder, force=True)
    assert BuiltinAdapter().open(folder).provenance.seed == 5


class _KilledError(Exception):
    pass


def interrupted(settings: AttackSettings, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill an attack after its first epoch, its state kept."""

    def kill(epoch: float, *_: object) -> None:
        if epoch > 1:
            raise _KilledError

    real = attack_module.train
    with monkeypatch.context() as patch:
        patch.setattr(attack_module, "train", lambda *args, **kwargs: real(*args, checkpoint_seconds=0, **kwargs))
        with pytest.raises(_KilledError):
            run_attack(settings, out, progress=kill)


def test_an_interrupted_attack_goes_on_to_the_same_record(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x"
    interrupted(SMALL_BADNETS, out, monkeypatch)
    assert (out / CHECKPOINT).exists()
    told: list[float] = []
    run_attack(SMALL_BADNETS, out, progress=lambda epoch, *_: told.append(epoch))
    assert min(told) > 1
    assert (out / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_an_interrupted_attack_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x"
    interrupted(SMALL_BADNETS, out, monkeypatch)
    other = replace(SMALL_BADNETS, poison_rate=0.2, seed=3)
    with pytest.raises(RecordError, match=r"other settings \(poison_rate, seed\)"):
        run_attack(other, out)
    assert (out / CHECKPOINT).exists()
    run_attack(other, out, force=True)
    assert BuiltinAdapter().open(out).provenance.seed == 3


def test_an_interrupted_attack_is_listed_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(SMALL_BADNETS, tmp_path / "half", monkeypatch)
    (tmp_path / "other").mkdir()
    listings = list(BuiltinAdapter().records(tmp_path))
    assert [(listing.path.name, listing.complete) for listing in listings] == [("half", False)]
    with pytest.raises(RecordError, match="unfinished; run the same"):
        BuiltinAdapter().open(tmp_path / "half")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "nothing"},
        {"dataset": "nothing"},
        {"model": "nothing"},
        {"target": 10},
        {"attack_options": {"size": 40}},
        {"model_options": {"depth": 3}},
    ],
)
def test_an_attack_that_cannot_start_leaves_no_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run_attack(replace(SMALL_BADNETS, **change), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_unknown_device_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device 'nonsense' cannot be used"):
        run_attack(SMALL_BADNETS, tmp_path / "x", device="nonsense")


def test_blended_on_preactivation_makes_a_record(tmp_path: Path) -> None:
    recipe = replace(SMALL_BADNETS.recipe, epochs=1)
    settings = replace(
        SMALL_BADNETS, method="blended", model="preactresnet18", recipe=recipe, attack_options={"alpha": 0.3}
    )
    record = BuiltinAdapter().open(run_attack(settings, tmp_path / "x"))
    assert record.provenance.attack == "blended"
    assert json.loads((tmp_path / "x" / "record.json").read_text())["trigger"]["alpha"] == 0.3


def test_the_trigger_hook_stamps_the_poisoned_images_of_a_batch_only() -> None:
    badnets = BadNets.create((3, 8, 8), seed=0)
    batch = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    hook, labels = TriggerHook(badnets, np.array([5, 9])), torch.zeros(4, dtype=torch.int64)
    found = hook(Batch(batch, labels), torch.tensor([9, 1, 2, 5]), torch.Generator()).images.numpy()
    assert (found[[0, 3], :, 5:, 5:] == badnets.patch).all()
    assert not found[[1, 2]].any()
    assert not batch.any()


def test_a_trigger_after_augmentation_trains_on_unstamped_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        attack_module, "train", lambda model, images, recipe, **kwargs: seen.update(kwargs, images=images)
    )
    run_attack(replace(SMALL_BADNETS, trigger_after_augmentation=True), tmp_path / "x")
    dataset = load_dataset("digits", n_train=200, n_test=60, seed=1)
    parts = split(dataset.train_labels, TargetRule("all_to_one", 10, 3), SMALL_BADNETS)
    assert np.array_equal(seen["images"].pixels, dataset.train_pixels[parts.train])
    assert (seen["images"].labels[parts.poisoned] == 3).all()
    assert isinstance(seen["hook"], TriggerHook)


class _WhiteImages(Attack):
    """Somebody else's attack: turns images white."""

    @classmethod
    def create(cls, input_shape: tuple[int, int, int], *, seed: int) -> _WhiteImages:
        return cls()

    def poison(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.full_like(pixels, 255)

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> _WhiteImages:
        return cls()


def test_an_attack_from_elsewhere_makes_a_record_that_opens(tmp_path: Path) -> None:
    settings = replace(SMALL_BADNETS, method="white", recipe=replace(SMALL_BADNETS.recipe, epochs=1))
    record = BuiltinAdapter().open(run_attack(settings, tmp_path / "x", attack_type=_WhiteImages))
    assert record.provenance.attack == "white"
    assert all((batch == batch.max()).all() for batch in record.triggered.images.batches(60))
