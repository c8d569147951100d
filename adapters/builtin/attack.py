"""Attack a model: load images, poison, train, and store a record."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from clp_plugin.errors import RecordError
from clp_plugin.files.atomic import delete, write_json_atomically
from clp_plugin.files.locks import claimed_inside
from clp_plugin.files.places import folder_to_fill
from clp_plugin.files.reading import read_json
from clp_plugin.images import ArrayImages
from clp_plugin.networks.devices import pick_device, seeded
from clp_plugin.records.exchange import TRAINING_SAMPLE

from .attacks.base import Attack
from .models.build import build
from .plan import AttackPlan, plan_attack
from .poisoning import TriggerHook, clean_training_set, poisoned_training_set, record_images
from .randomness import Stream, torch_seed
from .record_files import (
    DESCRIPTION,
    IMAGES,
    TRIGGER,
    UNFINISHED,
    WEIGHTS,
    read_description,
    require_files,
    write_record,
)
from .scene import Scene, preparation_seed
from .settings import AttackSettings
from .training.hooks import BatchHook, HooksInTurn
from .training.train import Progress, train

CHECKPOINT = "training.pt"


@contextlib.contextmanager
def attacked(
    settings: AttackSettings,
    out: Path,
    *,
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
    attack_type: type[Attack] | None = None,
    reuse: bool = False,
) -> Iterator[None]:
    """Train an attacked model and store it as a record, which counts as unfinished until the block ends well.

    A run that was killed, or whose block was, goes on where it stopped.

    Args:
        settings: All that decides what is attacked, and how.
        out: The record's folder.
        device: The device to train on; not part of the settings.
        force: Replace a complete record, and drop an unfinished one of other settings. The old record stays readable
            until the new one is trained.
        progress: Called while training.
        attack_type: The class behind ``settings.method``, where it is not one of ours.
        reuse: Use a complete record of these very settings, and wait for another run that is making it.

    Raises:
        ConfigError: If the settings are impossible, the training diverges, or another run has ``out``.
        RecordError: If the data set cannot be read, or ``out`` holds a record, another unfinished run, or foreign files.
    """
    device = pick_device(device)
    unfinished = out / UNFINISHED
    with claimed_inside(folder_to_fill(out), wait=reuse):
        if force or not (is_finished(settings, out) and (reuse or unfinished.exists())):
            _require_ours(settings, out, force=force)
            _attack(settings, out, device, progress, attack_type)
        yield
        ours = not _differing(unfinished, settings)  # else the state of a replacement that was stopped
        if ours:
            delete(out / CHECKPOINT)
    if ours:
        delete(unfinished)  # the last step of all: until then the same command goes on


def is_finished(settings: AttackSettings, out: Path) -> bool:
    """Whether ``out`` holds the complete record of an attack with these very settings."""
    try:
        require_files(out)
        return read_description(out).settings == _as_stored(settings)
    except (RecordError, OSError):  # OSError: a name that the system cannot even look up
        return False


def _attack(
    settings: AttackSettings, out: Path, device: str, progress: Progress | None, attack_type: type[Attack] | None
) -> None:
    plan = plan_attack(settings, attack_type)
    model = initial_model(settings, plan.dataset.num_classes)
    # Announced only now: a command that cannot work leaves no folder behind.
    write_json_atomically(out / UNFINISHED, settings.to_json())
    clean, poisoned = clean_training_set(plan.dataset, plan.parts), plan.parts.poisoned
    scene = _scene(settings, plan, clean, device, progress)
    attack = plan.attack.prepare(scene)
    own = _hook(attack, scene, settings)
    images = poisoned_training_set(clean, attack, plan.rule, poisoned, stamp=own is None)
    train(
        model,
        images,
        settings.recipe,
        seed=settings.seed,
        device=device,
        progress=progress,
        checkpoint=out / CHECKPOINT,
        hook=_hiding(own, [each.hook(model, attack, scene) for each in plan.evasions]),
    )
    write_record(
        out,
        replace(plan, attack=attack).description(settings, device),
        model,
        record_images(plan.dataset, attack, plan.rule, plan.parts, sample=TRAINING_SAMPLE, seed=settings.seed),
        attack.arrays(),
    )


def _hook(attack: Attack, scene: Scene, settings: AttackSettings) -> BatchHook | None:
    if not len(scene.poisoned):
        return None
    hook = attack.hook(scene)
    if hook is None and settings.trigger_after_augmentation:
        return TriggerHook(attack, scene.poisoned)
    return hook


def _hiding(own: BatchHook | None, evasions: list[BatchHook]) -> BatchHook | None:
    return HooksInTurn([own or BatchHook(), *evasions]) if evasions else own


def _scene(
    settings: AttackSettings, plan: AttackPlan, clean: ArrayImages, device: str, progress: Progress | None
) -> Scene:
    # Not the victim's own initial weights: an attacker does not know them.
    other_seed = replace(settings, seed=preparation_seed(settings.seed))
    return Scene(
        clean,
        plan.parts.poisoned,
        plan.rule,
        lambda: initial_model(other_seed, plan.dataset.num_classes),
        settings.recipe,
        settings.seed,
        device,
        progress,
    )


def initial_model(settings: AttackSettings, num_classes: int) -> nn.Module:
    """The untrained network: its weights depend on the seed alone; torch's global generator stays as it is."""
    with seeded(torch_seed(settings.seed, Stream.WEIGHTS)):
        return build(settings.model, num_classes=num_classes, **settings.model_options)


def _require_ours(settings: AttackSettings, out: Path, *, force: bool) -> None:
    """Refuse a folder that holds something else; with ``force`` drop what an unfinished run of other settings left."""
    if (out / DESCRIPTION).exists() and not force:
        raise RecordError(f"{out}: holds a complete record; give another folder, or --force to replace it")
    if not (out / UNFINISHED).exists():
        foreign = [name for name in (WEIGHTS, IMAGES, TRIGGER, CHECKPOINT) if (out / name).exists()]
        if foreign and not (out / DESCRIPTION).exists():
            raise RecordError(f"{out}: holds {foreign[0]} of no known attack, which stays; give another folder")
        delete(out / CHECKPOINT)
        return
    differing = _differing(out / UNFINISHED, settings)
    if differing and not force:
        raise RecordError(
            f"{out}: holds an unfinished attack with other settings ({', '.join(differing)}); repeat its command "
            "to go on, give another folder, or --force to drop it"
        )
    if differing:
        delete(out / CHECKPOINT)


def _differing(unfinished: Path, settings: AttackSettings) -> list[str]:
    """Names of the settings that an unfinished run has otherwise; empty where there is no such run."""
    if not unfinished.exists():
        return []
    found = read_json(unfinished, raises=RecordError, advice=f"delete the folder {unfinished.parent}")
    if not isinstance(found, dict):
        raise RecordError(f"{unfinished}: expected settings, found {type(found).__name__}; delete the folder")
    wanted = _as_stored(settings)
    return sorted(key for key in wanted | found if wanted.get(key) != found.get(key))


def _as_stored(settings: AttackSettings) -> dict[str, Any]:
    """The settings as a file tells them: there a tuple is a list."""
    stored: dict[str, Any] = json.loads(json.dumps(settings.to_json()))
    return stored
