"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from clp_plugin.errors import ConfigError


class Listed(str, Enum):
    """What ``bench list`` can list."""

    toolboxes = "toolboxes"
    defenses = "defenses"
    attacks = "attacks"
    records = "records"


class ScoreName(str, Enum):
    """Which score."""

    paper = "paper"
    relative = "relative"


class NormName(str, Enum):
    """Which spectral norm."""

    reshaped = "reshaped"
    exact = "exact"


class ScaleName(str, Enum):
    """How much work a method may cost."""

    paper = "paper"
    small = "small"


class ProtocolName(str, Enum):
    """By what a defense chooses its parameter."""

    defender = "defender"
    oracle = "oracle"


class Implementation(str, Enum):
    """Whose code repairs the model."""

    own = "own"
    toolbox = "toolbox"


# typer evaluates annotations at run time, so Optional instead of `X | None`, which Python 3.10 cannot give it.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, typer.Option(help="Allow pickles that run code. Only for files you know.")]
Registry = Annotated[Optional[Path], typer.Option(help="A file like registry.yaml that adds entries.")]  # noqa: UP045
Toolbox = Annotated[Optional[str], typer.Option(help="Toolbox of the record; found out if not given.")]  # noqa: UP045
Root = Annotated[Optional[Path], typer.Option(help="The toolbox's checkout; see `bench toolbox --help`.")]  # noqa: UP045
RecordPath = Annotated[Path, typer.Option(help="The record's folder, or with --toolbox its name in the checkout.")]
Given = Annotated[Optional[list[str]], typer.Option("--option", help="NAME=VALUE, again and again: any option.")]  # noqa: UP045
TimeLimit = Annotated[Optional[float], typer.Option(help="Stop the toolbox's script after so many seconds.")]  # noqa: UP045
FastCpu = Annotated[
    bool, typer.Option(help="Toolbox's scripts without a GPU: bfloat16 and channels-last. Numbers change a little.")
]
Scale = Annotated[
    ScaleName, typer.Option(help="paper: the published settings; small: about a minute on 2 cores with small networks.")
]
ProtocolChoice = Annotated[
    ProtocolName, typer.Option("--protocol", help="oracle: choose thresholds by the test set, as toolboxes do; marked.")
]
OutFolder = Annotated[Optional[Path], typer.Option(help="Folder for the results.")]  # noqa: UP045
U = Annotated[Optional[float], typer.Option(help="Prune above mean + u * std. Default: per data set, 3 for CIFAR-10.")]  # noqa: UP045
Score = Annotated[
    ScoreName, typer.Option(help="paper: sigma of the fused kernel; relative: in units of a channel's own response.")
]
Norm = Annotated[NormName, typer.Option(help="reshaped: the paper's; exact: of the convolution as an operator.")]
Parity = Annotated[
    bool, typer.Option(help="Prune exactly what the published code prunes (its pairing, unbiased std, no eps).")
]


def refuse(context: typer.Context, *names: str, where: str) -> None:
    """An option that would be ignored is a mistake to be said, not passed over.

    Raises:
        ConfigError: If one of the named parameters was given on the command line.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--{name.replace('_', '-')} has no meaning {where}; leave it out")
