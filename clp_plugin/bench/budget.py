"""Drawing what a defense may see of a record, and no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clp_plugin.defenses.base import Budget, Defense, chosen_parameter
from clp_plugin.errors import ConfigError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.types import ChoiceProtocol, Record

DEFAULT_BUDGET = 500
_KINDS = {"benign": "benign images", "poisoned": "images of the poisoned training set"}


def draw_budget(
    record: Record,
    method: str,
    defense: Defense,
    *,
    n: int | None = None,
    protocol: ChoiceProtocol = "defender",
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Budget, str]:
    """Draw what a defense may see of a record: exactly what it declares.

    Args:
        record: The attacked model's record, which the images are drawn from.
        method: Name of the defense, for messages.
        defense: The defense, which declares its budget.
        n: Number of images; None for 500 (1 % of CIFAR-10, CLP 5.1), or all where there are fewer.
        protocol: ``"oracle"`` adds the judge.
        seed: Seed of the draw, which is uniform: a class may be missing, as it may in life.
        device: The device on which the judge evaluates.

    Returns:
        The budget, and how outcomes name it: ``"none"``, ``"benign:500"``, ``"poisoned:500"``.

    Raises:
        ConfigError: If the record holds fewer images than ``n``, or none of that kind; if ``n`` is given to a data-free
            defense; if the protocol is the oracle's and the defense chooses nothing.
    """
    if protocol == "oracle" and not chosen_parameter(defense):
        raise ConfigError(f"{method} chooses no parameter by results; run it without --protocol oracle")
    plain = Budget(record.input_shape, record.target.num_classes, record.provenance.mean, record.provenance.std)
    if protocol == "oracle":
        plain = replace(plain, judge=lambda model: evaluate(model, record, device=device))
    if defense.budget == "none":
        if n is not None:
            raise ConfigError(f"{method} sees no images; leave out --n-budget")
        return plain, "none"
    kind = defense.budget
    available = record.benign if kind == "benign" else record.poisoned_training
    if available is None or not len(available):
        raise ConfigError(
            f"{method} needs {_KINDS[kind]}, and {record.provenance.path} holds none; choose another defense "
            "or a record with some (`bench record --n-benign`)"
        )
    if n is not None and not 2 <= n <= len(available):
        raise ConfigError(
            f"--n-budget: {record.provenance.path} holds {len(available)} {_KINDS[kind]}; give 2 to {len(available)}, "
            f"found {n}"
        )
    count = n if n is not None else min(DEFAULT_BUDGET, len(available))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(available))[:count])
    seen = available.take(chosen)
    given = replace(plain, benign=seen) if kind == "benign" else replace(plain, poisoned=seen)
    return given, f"{kind}:{count}"
