"""Many defenses on a record, cell by cell: what is there already is not run again, and no failure stops the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from clp_plugin.bench.run import make_defense, plan_defense, run_defense, store_run
from clp_plugin.defenses.base import Defense, chosen_parameter
from clp_plugin.errors import ClpError
from clp_plugin.evaluation.metrics import Judgement, judge
from clp_plugin.files.atomic import staged_folder
from clp_plugin.files.locks import claimed
from clp_plugin.records.adapter import ReadsRecords
from clp_plugin.registry import Catalogue
from clp_plugin.store.layout import OUTCOME, run_folder, stored_run
from clp_plugin.store.outcomes import Outcome, RunFacts, load_outcome, save_outcome
from clp_plugin.types import ChoiceProtocol, Progress, Record

ProgressBar = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class Cell:
    """One defense on one record.

    Attributes:
        outcome: What came of it.
        record: Name of the record's folder.
        kept: Whether it was there already.
    """

    outcome: Outcome
    record: str
    kept: bool = False


@dataclass(frozen=True)
class GridSettings:
    """What is the same in all cells of a grid.

    Attributes:
        catalogue: Where the defenses come from.
        scale: Scale of their settings, ``"paper"`` or ``"small"``.
        protocol: By what thresholds are chosen; a defense that chooses nothing is left out of the oracle's.
        device: Where everything runs.
        command: The command line, for the outcomes.
        progress: Shows the progress of the run of that label.
    """

    catalogue: Catalogue
    scale: str = "paper"
    protocol: ChoiceProtocol = "defender"
    device: str = "cpu"
    command: str = ""
    progress: ProgressBar = lambda label: contextlib.nullcontext()


def defend_all(
    record: Record, methods: Sequence[str], settings: GridSettings, *, adapter: ReadsRecords, seed: int = 0
) -> Iterator[Cell]:
    """Run defenses on one record, or take what is there; each is stored as soon as it ends, also one that fails.

    Args:
        record: The attacked model and its images.
        methods: Names of defenses in the catalogue.
        settings: What is the same in all cells.
        adapter: The record's; it says where results lie.
        seed: Seed of the defenses.
    """
    known: list[Judgement] = []

    def before() -> Judgement:
        if not known:
            known.append(judge(record.model, record, device=settings.device))
        return known[0]

    for method in methods:
        defense, options = make_defense(settings.catalogue, method, record.provenance.dataset, {}, scale=settings.scale)
        if settings.protocol == "oracle" and not chosen_parameter(defense):
            continue
        facts = RunFacts(
            method, options, seed, settings.device, settings.command, record.provenance, protocol=settings.protocol
        )
        yield _cell(record, defense, facts, settings, adapter, before)


def _cell(
    record: Record,
    defense: Defense,
    facts: RunFacts,
    settings: GridSettings,
    adapter: ReadsRecords,
    before: Callable[[], Judgement],
) -> Cell:
    name = record.folder.name
    folder = run_folder(record.folder, defense, facts)
    with contextlib.ExitStack() as held:
        try:
            planned = plan_defense(
                record, facts.method, defense, facts.options, seed=facts.seed, device=facts.device,
                command=facts.command, protocol=facts.protocol,
            )  # fmt: skip
            folder = planned.folder(adapter)
            if stored_run(folder, planned.facts) is None:
                held.enter_context(claimed(folder))  # whoever waits here takes what the other run has made
            if (earlier := stored_run(folder, planned.facts)) is not None:
                return Cell(earlier, name, kept=True)
            attacked = before()
            with settings.progress(f"{facts.method} on {name}") as report:
                run = run_defense(planned, before=attacked, progress=report)
        except Exception as error:  # hours of other cells must not be lost to one method, whoever wrote it
            told = str(error) if isinstance(error, ClpError) else f"{type(error).__name__}: {error}"
            failed = facts.outcome(error=told)
            with staged_folder(folder) as place:
                save_outcome(failed, place / OUTCOME)
            return Cell(failed, name)
        store_run(run, folder, adapter=adapter)
    return Cell(load_outcome(folder / OUTCOME), name)
