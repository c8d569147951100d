"""The options of ``bench leaderboard run``; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from clp_plugin.cli.options import (
    Data,
    Device,
    ExecutorName,
    FastCpu,
    NBudget,
    ProtocolChoice,
    Registry,
    Root,
    Scale,
    TimeLimit,
    Toolbox,
    Trust,
)
from clp_plugin.store.again import Again


@dataclass(frozen=True)
class GridRequest:
    """The options of ``bench leaderboard run``."""

    config: Annotated[
        Path | None, typer.Argument(help="A YAML file with these options by name; those that are typed win.")
    ] = None
    record: Annotated[
        list[str],
        typer.Option(help="Folder of a record, or a quoted pattern such as 'runs/*'; again and again. Any toolbox's."),
    ] = field(default_factory=list)
    attack: Annotated[
        list[str],
        typer.Option(help="Make records first: NAME, NAME:all for all-to-all, NAME:3 for target 3; again and again."),
    ] = field(default_factory=list)
    attack_seeds: Annotated[str, typer.Option(help="0,1 or 0:3; of the attacks.")] = "0"
    preset: Annotated[str, typer.Option(help="Settings of the attacks: small, demo, cifar10-resnet20, clp-paper.")] = (
        "small"
    )
    method: Annotated[
        list[str],
        typer.Option(
            help="NAME, NAME:OPTION=VALUE, or TOOLBOX:NAME for its own; again and again. Default: ours but the opt-ins."
        ),
    ] = field(default_factory=list)
    seeds: Annotated[str, typer.Option(help="0,1 or 0:3; of the methods.")] = "0"
    scale: Scale = "paper"
    protocol: ProtocolChoice = "defender"
    n_budget: NBudget = None
    out: Annotated[Path, typer.Option(help="The grid's folder: an outcome a cell, and the records made first.")] = Path(
        "runs/leaderboard"
    )
    again: Annotated[
        Again, typer.Option(help="What is run of the cells that are there already: never runs nothing at all.")
    ] = "only-missing"
    dry_run: Annotated[bool, typer.Option(help="Show the cells, what is there, and about how long the rest takes.")] = (
        False
    )
    executor: Annotated[ExecutorName, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = (
        "local"
    )
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Records at a time. Default: as many as there are cores; 0: in this process."),
    ] = None
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker.")] = 1
    shard: Annotated[
        str | None, typer.Option(help="I/N: only every N-th record, for N jobs of a scheduler; all may share a folder.")
    ] = None
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster, such as auto. Default: one on this machine.")
    ] = None
    toolbox: Toolbox = None
    root: Root = None
    data: Data = None
    time_limit: TimeLimit = None
    fast_cpu: FastCpu = False
    device: Device = "auto"
    trust: Trust = False
    registry: Registry = None
