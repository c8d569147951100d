"""An attacker who has a backdoored network hides the backdoor afterwards: trains the network of a record on with evasions.

    python benchmarks/adaptive.py runs/plain --evade search --epochs 2 --lr 0.02 --out runs/hidden

Attack, images, seeds and poisoned positions are the record's own; its ``settings`` tell the last part of the training. For
attacks that only put a trigger on images: not for ``iab``, which trains one, nor for ``cla``, which perturbs images first.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from clp_plugin.adapters.builtin.attacks.catalogue import attack_class
from clp_plugin.adapters.builtin.evasions.catalogue import parse_evasions
from clp_plugin.adapters.builtin.plan import plan_attack
from clp_plugin.adapters.builtin.poisoning import TriggerHook, clean_training_set, poisoned_training_set, record_images
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.record_files import read_description, read_trigger, write_record
from clp_plugin.adapters.builtin.scene import Scene
from clp_plugin.adapters.builtin.settings import AttackSettings
from clp_plugin.adapters.builtin.training.hooks import BatchHook, HooksInTurn
from clp_plugin.adapters.builtin.training.train import train
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.records.exchange import TRAINING_SAMPLE


def main() -> None:
    """Train on, store, print ACC and ASR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--evade", action="append", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.02, help="falls to 0 along a half cosine")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    described, adapter = read_description(given.record), BuiltinAdapter()
    settings = TypeAdapter(AttackSettings).validate_python(described.settings)
    recipe = replace(settings.recipe, epochs=given.epochs, lr=given.lr, warmup_epochs=0.0)
    settings = replace(settings, recipe=recipe, evasions=parse_evasions(given.evade))
    plan = plan_attack(settings, None)
    attack = attack_class(settings.method).from_json(described.trigger, read_trigger(given.record))
    plan, model = replace(plan, attack=attack), adapter.open(given.record).model
    clean, fixed = clean_training_set(plan.dataset, plan.parts), settings.trigger_after_augmentation
    scene = Scene(clean, plan.parts.poisoned, plan.rule, lambda: model, recipe, settings.seed)
    own = TriggerHook(attack, scene.poisoned) if fixed else BatchHook()
    evasions = [each.hook(model, attack, scene) for each in plan.evasions]
    images = poisoned_training_set(clean, attack, plan.rule, scene.poisoned, stamp=not fixed)
    train(model, images, recipe, seed=settings.seed, hook=HooksInTurn([own, *evasions]))
    stored = record_images(plan.dataset, attack, plan.rule, plan.parts, sample=TRAINING_SAMPLE, seed=settings.seed)
    write_record(given.out, plan.description(settings, "cpu"), model, stored, attack.arrays())
    metrics = evaluate(model, adapter.open(given.out))
    print(f"{given.out}: ACC {metrics.acc:.1%}, ASR {metrics.asr:.1%}")


if __name__ == "__main__":
    main()
