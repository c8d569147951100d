"""The plan of a grid: tasks, one a record, and the cells of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clp_plugin.bench.grid.methods import Method
from clp_plugin.bench.run import make_defense
from clp_plugin.defenses.base import Defense, chosen_parameter
from clp_plugin.errors import ConfigError
from clp_plugin.registry import Catalogue
from clp_plugin.store.again import Again, is_due
from clp_plugin.store.cells import CellKey, CellStore
from clp_plugin.store.content import record_content
from clp_plugin.store.outcomes import Outcome, versions
from clp_plugin.types import ChoiceProtocol


@dataclass(frozen=True)
class AttackFirst:
    """An attack of the built-in bench that makes a record, unless it is there.

    Attributes:
        name: The attack, or ``NAME:TARGET``; ``NAME:all`` is all-to-all.
        preset: Complete settings of it.
        seed: Seed of the attack.
    """

    name: str
    preset: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of its record's folder."""
        return f"{self.name.replace(':', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class Task:
    """One record with all its methods, so that it is opened and judged once.

    Attributes:
        record: The record's folder; made first, if there is an ``attack``.
        methods: The methods that run on it.
        seeds: Seeds of the methods.
        toolbox: Name of the record's toolbox; found out by file names if None.
        attack: The attack that makes the record.
    """

    record: Path
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    toolbox: str | None = None
    attack: AttackFirst | None = None


@dataclass(frozen=True)
class GridSettings:
    """The settings that all cells of a grid share.

    Attributes:
        out: The grid's folder.
        registry: A file that adds to the catalogue.
        root: Checkout of the records' toolbox, if not the one that its adapter finds.
        data: Where the data set lies that records without images borrow them of; the configured place if None.
        scale: Scale of the methods' settings, ``"paper"`` or ``"small"``.
        protocol: The protocol by which thresholds are chosen. A defense that chooses nothing, and a toolbox's script,
            which has a protocol of its own, are left out of the oracle's.
        n_budget: Number of images that a defense with a budget sees; None for the usual number.
        device: The device that everything runs on.
        again: The cells that are run although they are there already.
        trust: Allow pickles that run code.
        time_limit: Seconds after which a toolbox's script is stopped, or None.
        fast_cpu: A toolbox's scripts may compute in bfloat16 where there is no GPU.
        command: The command line, for the outcomes.
    """

    out: Path
    registry: Path | None = None
    root: Path | None = None
    data: Path | None = None
    scale: str = "paper"
    protocol: ChoiceProtocol = "defender"
    n_budget: int | None = None
    device: str = "cpu"
    again: Again = "only-missing"
    trust: bool = False
    time_limit: float | None = None
    fast_cpu: bool = False
    command: str = ""

    @property
    def store(self) -> CellStore:
        """The store of the cells."""
        return CellStore(self.out)


@dataclass(frozen=True)
class Cell:
    """One method with one seed on one record.

    Attributes:
        record: The record's folder.
        method: The method that runs.
        key: All that decides its result.
        defense: Ours, made; None for a toolbox's own.
    """

    record: Path
    method: Method
    key: CellKey
    defense: Defense | None

    @property
    def label(self) -> str:
        """The cell's name for people."""
        return f"{self.method}, seed {self.key.seed}, on {self.record.name}"


def cells_of(
    task: Task, content: str, settings: GridSettings, catalogue: Catalogue, *, dataset: str, toolbox: str
) -> Iterator[Cell]:
    """The cells of one record, in the order in which they run.

    Args:
        task: The record and its methods.
        content: Hash of the record's content.
        settings: The settings that all cells share.
        catalogue: The catalogue that our own defenses come from.
        dataset: Name of the record's data set, on which usual options depend.
        toolbox: Name of the record's toolbox.

    Raises:
        ConfigError: If a defense refuses an option.
        RegistryError: If a defense is unknown or cannot be imported.
    """
    version = versions()["clp_plugin"]
    for method in task.methods:
        if not method.runs_on(toolbox):
            continue
        defense, options = None, dict(method.options)
        if method.is_own:
            defense, options = make_defense(catalogue, method.name, dataset, method.options, scale=settings.scale)
        if settings.protocol == "oracle" and not (defense is not None and chosen_parameter(defense)):
            continue
        for seed in task.seeds:
            key = CellKey(
                content, method.name, method.implementation, options, seed, settings.protocol, settings.n_budget, version
            )  # fmt: skip
            yield Cell(task.record, method, key, defense)


@dataclass(frozen=True)
class Planned:
    """A cell as it stands before anything runs.

    Attributes:
        cell: The cell that is planned.
        earlier: The outcome that is stored of it.
        due: Whether it will be run.
    """

    cell: Cell
    earlier: Outcome | None
    due: bool


def foreseen(task: Task, settings: GridSettings, catalogue: Catalogue) -> list[Planned] | None:
    """The cells of a record that was in this grid before, without opening it; None if it was not, so all are due."""
    if not task.record.is_dir() or settings.store.is_new():  # then gigabytes need no hash yet
        return None
    content = record_content(task.record)
    known = settings.store.known(content)
    if known is None:
        return None
    cells = cells_of(
        task, content, settings, catalogue, dataset=str(known["dataset"]), toolbox=str(known["toolbox"])
    )  # fmt: skip
    stored = [(cell, settings.store.stored(cell.key)) for cell in cells]
    return [Planned(cell, earlier, is_due(earlier, settings.again)) for cell, earlier in stored]


def shard(tasks: Sequence[Task], text: str | None) -> list[Task]:
    """The share ``I/N`` of the tasks: every N-th, so that all shares together are all tasks, each once.

    Args:
        tasks: All of them, in an order that is the same on every machine.
        text: ``"1/4"`` to ``"4/4"``; all tasks if None.

    Raises:
        ConfigError: If the text is of another form.
    """
    if text is None:
        return list(tasks)
    first, slash, count = text.partition("/")
    if not slash or not (first.isdecimal() and count.isdecimal()) or not 1 <= int(first) <= int(count):
        raise ConfigError(f"--shard: expected I/N with I from 1 to N, such as 1/4, found {text!r}")
    return list(tasks[int(first) - 1 :: int(count)])


def seconds_by_method(outcomes: Sequence[Outcome]) -> Mapping[tuple[str, str], float]:
    """Mean seconds of each method and implementation over what is stored."""
    found: dict[tuple[str, str], list[float]] = {}
    for outcome in outcomes:
        if outcome.status == "ok":
            found.setdefault((outcome.method, outcome.implementation), []).append(outcome.seconds)
    return {method: sum(seconds) / len(seconds) for method, seconds in found.items()}
