"""One defense on one record, from its plan to the stored outcome: own copy, seed, timing, metrics, files."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from clp_plugin.bench.budget import draw_budget
from clp_plugin.defenses.base import Budget, Defense, Repaired
from clp_plugin.errors import ConfigError, RegistryError, unknown_name
from clp_plugin.evaluation.judging import RecordJudge
from clp_plugin.evaluation.metrics import Judgement
from clp_plugin.evidence.sweep import SweepRow, sweep
from clp_plugin.files.atomic import staged_folder
from clp_plugin.files.checkpoints import save_weights
from clp_plugin.masking.apply import save_mask
from clp_plugin.networks.devices import seeded
from clp_plugin.records.adapter import ReadsRecords, WritesResults
from clp_plugin.registry import Catalogue
from clp_plugin.selection.outliers import PRUNED_KINDS, parse_layers
from clp_plugin.store.layout import MASK, OUTCOME, WEIGHTS, WEIGHTS_PICKLED, run_folder
from clp_plugin.store.outcomes import Outcome, RunFacts, save_outcome
from clp_plugin.types import BudgetKind, ChoiceProtocol, Mask, Metrics, Progress, Record

_EXACT = 2**53  # whole numbers below it are floats without a loss


@dataclass(frozen=True)
class PlannedRun:
    """One defense on one record, decided in full before anything is computed.

    Attributes:
        record: The attacked model and its images.
        defense: The defense that repairs it.
        budget: The data that the defense may see, and no more.
        facts: The facts that will be stored of the run, whatever comes of it.
        n_budget: Number of images that were asked for; None for the usual number.
    """

    record: Record
    defense: Defense
    budget: Budget
    facts: RunFacts
    n_budget: int | None = None

    def folder(self, adapter: ReadsRecords) -> Path:
        """The result's folder: where the toolbox looks for it, if it has a place for results of ours."""
        if isinstance(adapter, WritesResults):
            return adapter.result_folder(self.record.folder, self.facts.method, self.facts.options)
        return run_folder(self.record.folder, self.defense, self.facts, n_budget=self.n_budget)


@dataclass(frozen=True)
class DefenseRun:
    """A run of a defense that ended well, judged by our evaluator, whosever code ran.

    Attributes:
        record: The attacked model and its images.
        repaired: The repaired model, and what the defense found on its way there.
        judged_before: The judgement of the attacked model on the test images.
        judged_after: The judgement of the repaired model on them.
        outcome: The outcome that is stored of it.
    """

    record: Record
    repaired: Repaired
    judged_before: Judgement
    judged_after: Judgement
    outcome: Outcome

    @property
    def before(self) -> Metrics:
        """Metrics of the attacked model."""
        return self.judged_before.metrics

    @property
    def after(self) -> Metrics:
        """Metrics of the repaired model."""
        return self.judged_after.metrics

    @property
    def threshold(self) -> float | None:
        """The u that scores were cut off at; None where the method has none, or chose to prune nothing."""
        u = self.repaired.log.get("u") if self.repaired.scores is not None else None
        return None if u is None else float(u)

    def sweep(self, values: Sequence[float], *, progress: Progress | None = None) -> list[SweepRow]:
        """Metrics at other thresholds than the run's own, from the scores that the defense found.

        Args:
            values: Values of u, 0 or more.
            progress: Called with batches under a mask done and in all.

        Returns:
            One row a value; none if the defense has no scores to sweep over.
        """
        if self.repaired.scores is None or self.repaired.mask is None:
            return []
        known = {Mask({}): self.judged_before, self.repaired.mask: self.judged_after}
        layers = parse_layers(str(self.outcome.options.get("layers", ",".join(PRUNED_KINDS))))
        return sweep(
            self.record,
            self.repaired.scores,
            values,
            layers=layers,
            known=known,
            device=self.outcome.device,
            progress=progress,
        )

    def measured(self) -> dict[str, float]:
        """The final numbers as :meth:`clp_plugin.records.adapter.WritesResults.export` takes them."""
        found = {"acc": self.after.acc, "asr": self.after.asr, "ra": self.after.ra}
        losses = {
            "clean_loss": self.judged_after.clean_loss,
            "triggered_loss": self.judged_after.triggered_loss,
        }
        return {**({} if self.threshold is None else {"u": self.threshold}), **losses, **found}


def make_defense(
    catalogue: Catalogue, method: str, dataset: str, options: Mapping[str, Any], *, scale: str = "paper"
) -> tuple[Defense, dict[str, Any]]:
    """A defense with the catalogue's defaults for the data set and the scale, overridden by ``options``.

    Args:
        catalogue: The catalogue of what is on offer.
        method: Name of the defense in the catalogue.
        dataset: The data set whose defaults to take.
        options: Options that win over the defaults.
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
        known = {field.name: field.type for field in dataclasses.fields(kind) if field.init}
        for name in used:
            if name not in known:
                raise ConfigError(f"defense {method!r}: {unknown_name('option', name, list(known))}")
        used = {name: _as_declared(value, known[name]) for name, value in used.items()}
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


def _as_declared(value: object, declared: object) -> object:
    """The value of an option as its type writes it: ``u=2`` and ``u=2.0`` are one run, and one cell of a grid."""
    is_float = declared is float or "float" in str(declared).split(" | ")
    return float(value) if is_float and type(value) is int and abs(value) < _EXACT else value


def plan_defense(
    record: Record,
    method: str,
    defense: Defense,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    device: str = "cpu",
    command: str = "",
    n_budget: int | None = None,
    protocol: ChoiceProtocol = "defender",
) -> PlannedRun:
    """Decide what a run of a defense may see and what will be stored of it.

    Args:
        record: The attacked model and its images.
        method: Name of the defense for the outcome.
        defense: The defense, which will receive exactly the budget that it declares.
        options: Options of the defense, for the outcome.
        seed: Seed of the defense and of the draw of its images.
        device: The device that the defense and the evaluation run on.
        command: The command line, for the outcome.
        n_budget: Number of images that the defense may see; see :func:`clp_plugin.bench.budget.draw_budget`.
        protocol: ``"oracle"`` lets the defense choose its parameter by the test set, and marks the outcome.

    Raises:
        ConfigError: If the budget cannot be given, or the protocol is the oracle's and the defense chooses nothing.
    """
    budget, label = draw_budget(record, method, defense, n=n_budget, protocol=protocol, seed=seed, device=device)
    facts = RunFacts(
        method, options, seed, device, command, record.provenance, budget=label, protocol=protocol,
        target=str(record.target),
    )  # fmt: skip
    return PlannedRun(record, defense, budget, facts, n_budget)


def run_defense(
    planned: PlannedRun, *, judge: RecordJudge | None = None, progress: Progress | None = None
) -> DefenseRun:
    """Repair a copy of the record's model and measure both.

    Args:
        planned: The planned run; its record is not changed.
        judge: The judge of the record, if it has judged already; on the device of the run.
        progress: Called by the defense.

    Raises:
        ConfigError: If the defense refuses the network.
    """
    record, facts = planned.record, planned.facts
    judge = judge or RecordJudge(record, device=facts.device)
    judge.before()  # a record that cannot be judged is not worth a repair
    own = copy.deepcopy(record.model).to(facts.device).eval()
    start = time.perf_counter()
    with seeded(facts.seed, facts.device):
        repaired = planned.defense.repair(own, planned.budget, seed=facts.seed, progress=progress)
    return judged(record, repaired, facts, seconds=time.perf_counter() - start, judge=judge)


def judged(
    record: Record,
    repaired: Repaired,
    facts: RunFacts,
    *,
    seconds: float,
    judge: RecordJudge,
    reported: Mapping[str, float] | None = None,
) -> DefenseRun:
    """Measure a repaired model and make the run's outcome.

    Args:
        record: The attacked model and its images.
        repaired: The result of a defense, ours or a toolbox's.
        facts: The facts that were known before the run.
        seconds: Time of the method itself.
        judge: The judge of the record.
        reported: Measurements of a toolbox's own script.
    """
    before, after = judge.before(), judge(repaired.model)
    outcome = facts.outcome(
        seconds=seconds, before=before.metrics, after=after.metrics, mask=repaired.mask, reported=reported, log=repaired.log
    )  # fmt: skip
    return DefenseRun(record, repaired, before, after, outcome)


def store_run(
    run: DefenseRun,
    folder: Path,
    *,
    adapter: ReadsRecords,
    rows: Sequence[SweepRow] = (),
    draw: Callable[[Path], object] = lambda place: None,
    keep_others: bool = False,
) -> list[str]:
    """Put a run's files into its folder, in one step.

    Args:
        run: The run to store.
        folder: The run's folder, which is made or replaced.
        adapter: The adapter that writes beside our files those that its toolbox reads, if it can.
        rows: A sweep over u for the toolbox's files.
        draw: Called with the place that is being filled, for figures.
        keep_others: Keep what others put beside an earlier result of the same run, such as a toolbox's figures.

    Returns:
        The names of the files written.
    """
    with staged_folder(folder) as place:
        save_defense(run, place)
        if isinstance(adapter, WritesResults):
            adapter.export(
                place, folder.name, record=run.record, model=run.repaired.model, final=run.measured(),
                sweep=[dataclasses.asdict(row) for row in rows],
            )  # fmt: skip
        draw(place)
        names = sorted(written.name for written in place.iterdir())
        if keep_others and folder.is_dir():
            for item in folder.iterdir():
                if not (place / item.name).exists():
                    (shutil.copytree if item.is_dir() else shutil.copy2)(item, place / item.name)
    return names


def save_defense(run: DefenseRun, folder: Path) -> dict[str, str]:
    """Write weights (safetensors and .pt), mask and, last, the outcome.

    Returns:
        ``{"weights", "weights_pt", "mask", "outcome"}`` to paths; no ``mask`` for a defense that prunes nothing by design.
    """
    state = run.repaired.model.state_dict()
    paths = {"weights": folder / WEIGHTS, "weights_pt": folder / WEIGHTS_PICKLED}
    for path in paths.values():
        save_weights(state, path)
    if run.repaired.mask is not None:
        paths["mask"] = folder / MASK
        save_mask(run.repaired.mask, paths["mask"])
    paths["outcome"] = folder / OUTCOME
    save_outcome(run.outcome.model_copy(update={"weights": WEIGHTS}), paths["outcome"])
    return {name: str(path) for name, path in paths.items()}
