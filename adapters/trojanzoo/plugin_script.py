"""A method of this plugin as a defense class of TrojanZoo."""

from __future__ import annotations

import shlex
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from clp_plugin.bench.run import DefenseRun, make_defense, plan_defense, run_defense
from clp_plugin.cli.console import progress_bar, say
from clp_plugin.cli.showing import show_defense
from clp_plugin.files.option_values import parse_options
from clp_plugin.registry import Catalogue
from clp_plugin.store.outcomes import save_outcome

from .importing import trojanvision
from .live import live_record


class _Registered:
    """Repairs the attacked model in place, stores it as TrojanZoo stores models, and says what came of it.

    TrojanZoo's own class for defenses comes second in what :func:`defense_class` makes, so that this module can be imported
    where TrojanZoo cannot.
    """

    clp_plugin_method: ClassVar[str]
    catalogue: ClassVar[Catalogue]
    toolbox_class: ClassVar[Any]
    # TrojanZoo's class sets these.
    attack: Any
    dataset: Any
    model: Any
    folder_path: str
    param_list: dict[str, list[str]]

    @classmethod
    def add_argument(cls, group: Any) -> Any:
        """The method's options, behind its name, as all of TrojanZoo's options share one parser."""
        cls.toolbox_class.add_argument(group)
        for option, default in _options(cls.catalogue, cls.clp_plugin_method).items():
            told = "the usual one for the data set" if default is MISSING else default
            group.add_argument(f"--{cls.clp_plugin_method}_{option}", metavar="VALUE", help=f"(default: {told})")
        group.add_argument(f"--{cls.clp_plugin_method}_scale", choices=("paper", "small"), help="(default: paper)")
        return group

    def __init__(self, **given: Any) -> None:
        prefix = f"{self.clp_plugin_method}_"
        own = {name: value for name, value in given.items() if name.startswith(prefix)}
        self.toolbox_class.__init__(self, **{name: value for name, value in given.items() if name not in own})
        self.scale = own.pop(f"{prefix}scale", None) or "paper"
        typed = {name.removeprefix(prefix): value for name, value in own.items() if value is not None}
        words = [f"{name}={value}" for name, value in typed.items() if isinstance(value, str)]
        self.options = {**typed, **parse_options(words, flag=f"--{prefix.rstrip('_')}")}
        self.param_list[self.clp_plugin_method] = ["options", "scale"]

    def detect(self, **trainer: Any) -> None:
        """Repair and measure; ``trainer`` is what its scripts hand to every defense, and is not used."""
        self.toolbox_class.detect(self)
        run = self._run()
        self.model._model.load_state_dict(run.repaired.model.state_dict())
        stem = Path(self.folder_path) / self.toolbox_class.get_filename(self)
        self.model.save(f"{stem}.pth")
        outcome = run.outcome.model_copy(update={"weights": f"{stem.name}.pth"})
        save_outcome(outcome, stem.with_name(f"{stem.name}.json"))
        show_defense(run)
        say(f"wrote {stem.name}.pth and .json to {stem.parent}")
        # Its own numbers; without the limit it would tell an ASR of 0 where accuracy fell by more than 5 points.
        self.attack.validate_fn(threshold=float("inf"))

    def _run(self) -> DefenseRun:
        env = trojanvision().environ.env
        seed = int(env["seed"])
        record = live_record(self.attack, self.model, self.dataset, seed=seed)
        defense, options = make_defense(
            self.catalogue, self.clp_plugin_method, self.dataset.name, self.options, scale=self.scale
        )
        planned = plan_defense(
            record,
            self.clp_plugin_method,
            defense,
            options,
            seed=seed,
            device=str(env["device"]),
            command=shlex.join(sys.argv),
        )
        with progress_bar(self.clp_plugin_method) as report:
            return run_defense(planned, progress=report)


def defense_class(method: str, catalogue: Catalogue) -> type[Any]:
    """The class that TrojanZoo's registry holds for a method of ours.

    Args:
        method: Name of the method in the catalogue.
        catalogue: Catalogue that holds it.
    """
    toolbox_class = trojanvision().defenses.BackdoorDefense
    facts = {"name": method, "clp_plugin_method": method, "catalogue": catalogue, "toolbox_class": toolbox_class}
    return type(method.upper(), (_Registered, toolbox_class), facts)


def _options(catalogue: Catalogue, method: str) -> dict[str, Any]:
    kind = catalogue.resolve("defenses", method)
    if not is_dataclass(kind):
        return {}
    return {each.name: each.default for each in fields(kind) if each.init}
