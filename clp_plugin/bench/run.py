"""Run one defense on one record under the rules of the numbers: own copy, seed, timing, metrics, outcome."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from clp_plugin.bench.budget import draw_budget
from clp_plugin.defenses.base import Defense, Repaired
from clp_plugin.errors import ConfigError, RegistryError, unknown_name
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.files.checkpoints import save_weights
from clp_plugin.masking.apply import save_mask
from clp_plugin.networks.devices import seeded
from clp_plugin.registry import Catalogue
from clp_plugin.store.outcomes import Outcome, StoredMetrics, save_outcome
from clp_plugin.types import BudgetKind, ChoiceProtocol, Metrics, Progress, Record, defense_effectiveness


@dataclass(frozen=True)
class DefenseRun:
    """A repaired model and what is stored about it."""

    repaired: Repaired
    outcome: Outcome
    before: Metrics
    after: Metrics

    def with_log(self, **facts: Any) -> DefenseRun:
        """The same run with more to keep in the outcome's log."""
        outcome = self.outcome.model_copy(update={"log": {**self.outcome.log, **facts}})
        return dataclasses.replace(self, outcome=outcome)


def make_defense(
    catalogue: Catalogue, method: str, dataset: str, options: Mapping[str, Any], *, scale: str = "paper"
) -> tuple[Defense, dict[str, Any]]:
    """A defense with the catalogue's defaults for the data set and the scale, overridden by ``options``.

    Args:
        catalogue: Of what is on offer.
        method: A name in it.
        dataset: Whose defaults to take.
        options: They win.
        scale: ``"paper"`` or the name of one of the entry's ``scales``.

    Returns:
        The defense, and all options as used.

    Raises:
        RegistryError: If the method is unknown, or what stands behind it is no defense.
        ConfigError: If it has no such option, lacks one, or refuses a value.
    """
    kind = cast(Any, catalogue.resolve("defenses", method))
    used = {**catalogue.defaults("defenses", method, dataset=dataset, scale=scale), **options}
    if dataclasses.is_dataclass(kind):
        known = [field.name for field in dataclasses.fields(kind) if field.init]
        for name in used:
            if name not in known:
                raise ConfigError(f"defense {method!r}: {unknown_name('option', name, known)}")
    try:
        defense = kind(**used)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in used.items()) or "no options"
        raise ConfigError(f"defense {method!r} does not take {given}: {error}") from error
    if getattr(defense, "budget", None) not in get_args(BudgetKind) or not callable(getattr(defense, "repair", None)):
        raise RegistryError(
            f"defense {method!r}: {catalogue.entry('defenses', method).object} is no defense: expected an attribute "
            "`budget` of 'none', 'benign' or 'poisoned' and a method `repair(model, budget, *, seed, progress)`"
        )
    if dataclasses.is_dataclass(kind):
        used = {field.name: getattr(defense, field.name) for field in dataclasses.fields(kind) if field.init}
    return cast(Defense, defense), used


def run_defense(
    record: Record,
    method: str,
    defense: Defense,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    device: str = "cpu",
    command: str = "",
    progress: Progress | None = None,
    before: Metrics | None = None,
    n_budget: int | None = None,
    protocol: ChoiceProtocol = "defender",
) -> DefenseRun:
    """Repair a copy of the record's model and measure both.

    Args:
        record: Unchanged.
        method: Name for the outcome.
        defense: Receives exactly the budget that it declares.
        options: For the outcome.
        seed: Of the defense.
        device: Where the defense and the evaluation run.
        command: For the outcome.
        progress: Passed to the defense.
        before: Metrics of the attacked model, if known already.
        n_budget: How many images the defense may see; see :func:`draw_budget`.
        protocol: ``"oracle"`` lets the defense choose its parameter by the test set, and marks the outcome.

    Raises:
        ConfigError: If the budget cannot be given, the defense chooses nothing, or it refuses the network.
    """
    budget, label = draw_budget(record, method, defense, n=n_budget, protocol=protocol, seed=seed, device=device)
    own = copy.deepcopy(record.model).to(device).eval()
    before = before or evaluate(own, record, device=device)
    start = time.perf_counter()
    with seeded(seed, device):
        repaired = defense.repair(own, budget, seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    after = evaluate(repaired.model, record, device=device)
    outcome = Outcome(
        method=method,
        options=dict(options),
        command=command,
        seed=seed,
        device=device,
        seconds=seconds,
        budget=label,
        protocol=protocol,
        provenance=record.provenance.to_json(),
        before=StoredMetrics.model_validate(before.to_json()),
        after=StoredMetrics.model_validate(after.to_json()),
        der=defense_effectiveness(before, after),
        mask=None if repaired.mask is None else repaired.mask.to_json(),
        log=dict(repaired.log),
    )
    return DefenseRun(repaired, outcome, before, after)


def save_defense(run: DefenseRun, folder: Path) -> dict[str, str]:
    """Write weights (safetensors and .pt), mask and, last, the outcome.

    Returns:
        ``{"weights", "weights_pt", "mask", "outcome"}`` to paths; no ``mask`` for a defense that prunes nothing by design.
    """
    state = run.repaired.model.state_dict()
    paths = {"weights": folder / "weights.safetensors", "weights_pt": folder / "weights.pt"}
    for path in paths.values():
        save_weights(state, path)
    if run.repaired.mask is not None:
        paths["mask"] = folder / "mask.json"
        save_mask(run.repaired.mask, paths["mask"])
    paths["outcome"] = folder / "outcome.json"
    save_outcome(run.outcome.model_copy(update={"weights": paths["weights"].name}), paths["outcome"])
    return {name: str(path) for name, path in paths.items()}
