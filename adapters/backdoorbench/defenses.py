"""The toolbox's own defenses: what each may see, where it looks at test images, and how it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_plugin.errors import ConfigError, unknown_name

from ..driving.scripts import command_line, declared_options, read_configuration

if TYPE_CHECKING:
    from .attack_result import AttackResult

_PUBLISHED = (
    "preactresnet18", "vgg19_bn", "densenet161", "mobilenet_v3_large", "efficientnet_b3", "convnext_tiny", "vit_b_16",
)  # fmt: skip


@dataclass(frozen=True)
class ToolboxDefense:
    """Facts about one script, found by running it and by reading it.

    Attributes:
        script: Path of the script below the checkout.
        summary: Path of the table with its own final numbers, below its folder of results.
        scale: Factor that makes those numbers fractions: 1 for fractions, 0.01 for percent.
        sees: ``"none"``, ``"benign"`` (a share of the clean training images) or ``"poisoned"`` (poisoned training images).
        oracle: How test images take part in choosing a parameter; empty where they do not.
        models: The only networks that it knows; empty for all.
    """

    script: str
    summary: str
    scale: float = 1.0
    sees: str = "benign"
    oracle: str = ""
    models: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its folder, below the record's results and below the toolbox's configuration."""
        return Path(self.script).stem


DEFENSES: Mapping[str, ToolboxDefense] = {
    "clp": ToolboxDefense("defense/clp.py", "clp_df_summary.csv", sees="none"),
    "ft": ToolboxDefense("defense/ft.py", "ft_df_summary.csv"),
    "fp": ToolboxDefense(
        "defense/fp.py", "finetune_df_summary.csv", oracle="stops pruning by its accuracy on the clean test images"
    ),
    "nad": ToolboxDefense(
        "defense/nad.py", "nad_df_summary.csv", models=("resnet18", "vgg19", *_PUBLISHED)
    ),
    "anp": ToolboxDefense(
        "defense/anp.py", "anp_df_summary.csv", models=_PUBLISHED,
        oracle="keeps the threshold with the lowest ASR on the triggered test images",
    ),
    "rnp": ToolboxDefense("defense/rnp.py", "rnp_df_summary.csv", models=("preactresnet18", "vgg19_bn")),
    "ft-sam": ToolboxDefense("defense/ft-sam.py", "log/d-sam_df_summary.csv"),
    "sau": ToolboxDefense("defense/sau.py", "sau_df_summary.csv"),
    "npd": ToolboxDefense("defense/npd.py", "npd_df_summary.csv", scale=0.01, models=("preactresnet18",)),
    "i-bau": ToolboxDefense("defense/i-bau.py", "i-bau_df_summary.csv"),
    "bnp": ToolboxDefense("defense/bnp.py", "bnp_df_summary.csv", sees="poisoned", models=_PUBLISHED),
    "ep": ToolboxDefense("defense/ep.py", "ep_df_summary.csv", sees="poisoned", models=_PUBLISHED),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One run of a defense, ready to start.

    Attributes:
        arguments: Arguments of the script's command line.
        options: All settings that it will have: its configuration file's, then what was given.
        budget: The data that the defense sees, as the outcome names it.
    """

    arguments: list[str]
    options: dict[str, Any]
    budget: str


def defense_named(method: str) -> ToolboxDefense:
    """Facts about one of the toolbox's defenses.

    Raises:
        ConfigError: If it is none of those that can be run.
    """
    if method not in DEFENSES:
        raise ConfigError(f"backdoorbench: {unknown_name('defense', method, DEFENSES)}")
    return DEFENSES[method]


def plan(
    checkout: Path,
    method: str,
    result: AttackResult,
    given: Mapping[str, object],
    *,
    record_name: str,
    device: str,
    seed: int,
    mixed_precision: bool,
) -> Plan:
    """The command line that runs a defense on a record as its configuration file for the data set says.

    The record's own data set, network and device are always given: the toolbox's files name wrong ones in places. Where
    argparse has a default of its own, which would win over the configuration file, the file's value is given too.

    Args:
        checkout: The toolbox's root.
        method: A key of ``DEFENSES``.
        result: The attack result of the record.
        given: Options that the user gave; they win.
        record_name: Name of the record in the workspace.
        device: Name of the device: ``"cpu"`` or ``"cuda..."``.
        seed: Seed that the script is started with.
        mixed_precision: Whether to leave mixed precision to the configuration file; otherwise it is off.

    Raises:
        ConfigError: If the defense cannot treat this record, or has no such option.
    """
    defense = defense_named(method)
    _require_treatable(method, defense, result)
    declared = declared_options(checkout / defense.script)
    configured = _configuration(checkout, defense, result.dataset)
    content = read_configuration(checkout / configured)
    forced: dict[str, object] = {
        "result_file": record_name, "yaml_path": f"./{configured.as_posix()}", "dataset": result.dataset,
        "model": result.model_name, "device": device, "random_seed": seed, "num_workers": 0 if device == "cpu" else 4,
    }  # fmt: skip
    if not mixed_precision and "amp" in declared:
        forced["amp"] = False
    quiet = {
        name: value
        for name, value in content.items()
        if name in declared and (declared[name].has_default and not declared[name].flag) and value is not None
    }
    options = {**quiet, **forced, **given}
    arguments = command_line(defense.script, declared, options)
    settings = {**content, **options}
    return Plan(
        arguments, {name: value for name, value in settings.items() if value is not None}, budget_of(defense, settings)
    )


def _require_treatable(method: str, defense: ToolboxDefense, result: AttackResult) -> None:
    if defense.models and result.model_name not in defense.models:
        raise ConfigError(
            f"BackdoorBench's {method} knows only {', '.join(defense.models)}; this record's model is {result.model_name}"
        )
    if defense.sees == "poisoned" and result.train is None:
        raise ConfigError(
            f"BackdoorBench's {method} needs poisoned training images, and this record stores none (bd_train is None)"
        )


def _configuration(checkout: Path, defense: ToolboxDefense, dataset: str) -> Path:
    folder = Path("config", "defense", defense.folder)
    own = folder / f"{dataset}.yaml"
    return own if (checkout / own).is_file() else folder / "config.yaml"


def budget_of(defense: ToolboxDefense, settings: Mapping[str, Any]) -> str:
    """The data that a defense sees, as outcomes name it: ``"none"``, ``"benign:5 % of the training images"``, ..."""
    if defense.sees == "poisoned":
        return "poisoned:a batch of the poisoned training set"
    if defense.sees == "none":
        return "none"
    share = settings.get("ratio")
    return f"benign:{f'{100 * float(share):g} %' if share else 'a share'} of the training images"
