"""The attacker who knows the search: what is put on which images, and that fitted patches fool the network no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_scenes import RECIPE, network, scene_of
from torch.nn import functional as F  # noqa: N812

from clp_plugin.adapters.builtin.attacks.badnets import BadNets
from clp_plugin.adapters.builtin.attacks.blended import Blended
from clp_plugin.adapters.builtin.evasions import search
from clp_plugin.adapters.builtin.evasions.search import SearchEvasion, drawn_places
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.training.hooks import Batch
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.surrogate.patch import fit_patches, stamped
from clp_plugin.surrogate.pixels import PixelNetwork
from clp_plugin.types import TargetRule

SHAPE = (3, 16, 16)
ATTACK = BadNets.create(SHAPE, seed=0)
POISONED = [3, 9, 10]


def scene(count: int = 40) -> Scene:
    return scene_of(count, POISONED, shape=SHAPE, block=4, recipe=replace(RECIPE, epochs=6, batch_size=16))


def call(hook: search.SearchHook, given: Scene, seed: int = 0) -> Batch:
    images = Batch(torch.from_numpy(given.images.pixels), torch.from_numpy(given.images.labels))
    return hook(images, torch.arange(len(given.images)), torch.Generator().manual_seed(seed))


def test_a_share_of_the_clean_images_carries_one_of_the_patches_and_keeps_its_label() -> None:
    given, model = scene(), network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = call(SearchEvasion(share=0.5, patches=3).hook(model, ATTACK, given), given)
    assert torch.equal(found.labels, torch.from_numpy(given.images.labels))
    assert found.penalty is None
    changed = (found.images != torch.from_numpy(given.images.pixels)).any(1)
    carriers = changed.flatten(1).any(1).nonzero().flatten().tolist()
    assert len(carriers) == round(0.5 * (40 - 3))
    assert not set(carriers) & set(POISONED)
    patches = set()
    for carrier in carriers:
        rows, columns = (changed[carrier].any(axis).nonzero().flatten() for axis in (1, 0))
        patch = found.images[carrier, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert patch.shape[1] == patch.shape[2] in (3, 4, 5)
        patches.add(patch.numpy().tobytes())
    assert 1 < len(patches) <= 3  # two may be fitted at one place
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_patches_are_fitted_to_the_network_as_it_is_toward_the_target() -> None:
    given, model = scene(), network()
    hook = SearchEvasion(share=1.0, patches=2, steps=16).hook(model, ATTACK, given)
    patched = call(hook, given).images
    clean = torch.ones(40, dtype=torch.bool).index_fill(0, torch.tensor(POISONED), value=False)
    with torch.no_grad():
        before, after = (
            F.cross_entropy(hook.network.logits(images[clean] / 255), torch.zeros(37, dtype=torch.int64))
            for images in (torch.from_numpy(given.images.pixels), patched)
        )
    assert float(after) < float(before)


@pytest.mark.parametrize(("target", "expected"), [(2, {2}), (None, {0, 1, 2})])
def test_they_are_of_the_attackers_class_and_of_any_class_where_all_are_targets(
    monkeypatch: pytest.MonkeyPatch, target: int | None, expected: set[int]
) -> None:
    classes = set()

    def note(*args: object, **options: object) -> torch.Tensor:
        starts, size = args[2], args[3]
        assert isinstance(starts, list)
        assert isinstance(size, int)
        classes.update(one for one, _ in starts)
        assert all(0 <= place <= 16 - size for _, corner in starts for place in corner)
        return torch.zeros(len(starts), 3, size, size)

    monkeypatch.setattr(search, "fit_patches", note)
    given = replace(scene(), rule=TargetRule("all_to_one" if target is not None else "all_to_all", 3, target))
    hook = SearchEvasion(patches=20).hook(network(), ATTACK, given)
    for seed in range(3):
        call(hook, given, seed)
    assert classes == expected


def test_half_of_the_places_are_where_the_trigger_is() -> None:
    places = drawn_places(ATTACK, scene())
    assert float(places.sum()) == pytest.approx(1)
    assert float(places[13:, 13:].sum()) == pytest.approx(0.5 + 0.5 * 9 / 256)
    assert places[:13].unique().tolist() == pytest.approx([0.5 / 256])
    everywhere = drawn_places(Blended.create(SHAPE, seed=0), scene())
    assert float(everywhere.max()) < 4 / 256


def test_a_batch_of_poisoned_images_alone_is_left_as_it_is() -> None:
    given = replace(scene(3), poisoned=np.arange(3))
    found = call(SearchEvasion().hook(network(), ATTACK, given), given)
    assert torch.equal(found.images, torch.from_numpy(given.images.pixels))


def test_fitted_patches_reach_the_target_less_after_a_training_against_them() -> None:
    given = scene(48)
    pixels = given.images.pixels // 2
    pixels[np.arange(48), given.images.labels] += 60  # the class is the brightest channel
    given = replace(given, images=replace(given.images, pixels=pixels))
    images, labels = torch.from_numpy(pixels) / 255, torch.from_numpy(given.images.labels)
    places, moved = [(2, 2), (6, 6), (10, 3), (11, 11)], []
    for evasion in (None, SearchEvasion(share=1.0, patches=3, steps=4)):
        model = network()
        hook = None if evasion is None else evasion.hook(model, ATTACK, given)
        train(model, given.images, given.recipe, seed=0, hook=hook)
        victim = PixelNetwork(model, given.images.mean, given.images.std)
        assert float((victim.classes(images) == labels).double().mean()) > 0.8
        patches = fit_patches(victim, images, [(0, place) for place in places], 5)
        reached = victim.classes(stamped(images[labels != 0], patches, places))
        moved.append(float((reached == 0).double().mean()))
    assert moved[0] > 0.7
    assert moved[1] < 0.5
