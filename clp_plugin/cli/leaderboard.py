"""``bench leaderboard``: options and help of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clp_plugin.cli.options import AsJson

leaderboard_app = typer.Typer(
    no_args_is_help=True,
    help="Rank all methods over all records whose outcomes lie below some folders: a table, the paper's tables and figures, "
    "or one HTML file that people explore.",
)
Folders = Annotated[list[Path], typer.Argument(help="Records, or folders that hold records, of any toolbox.")]
Where = Annotated[
    list[str] | None, typer.Option(help="COLUMN=VALUE, again and again: only these outcomes, such as attack=badnets.")
]
SortedBy = Literal["der", "acc", "asr", "ra"]


@leaderboard_app.command()
def show(
    folders: Folders,
    sort: Annotated[SortedBy, typer.Option(help="What orders the methods.")] = "der",
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Rank the methods, and say where the records at hand cannot tell them apart."""
    from clp_plugin.cli.commands.leaderboard import show_leaderboard

    show_leaderboard(folders, sort=sort, where=where or [], as_json=as_json)


@leaderboard_app.command()
def tables(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")],
    by: Annotated[
        Literal["attack", "poison_rate", "architecture", "dataset"], typer.Option(help="What a row stands for.")
    ] = "attack",
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Write the paper's tables (Markdown, LaTeX, CSV) and its figures of sweeps for these records."""
    from clp_plugin.cli.commands.leaderboard import write_tables

    write_tables(folders, out, by=by, where=where or [], as_json=as_json)


@leaderboard_app.command()
def page(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Leaderboard",
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file with leaderboard, comparison and records, which needs no network."""
    from clp_plugin.cli.commands.leaderboard import write_page

    write_page(folders, out, title=title, where=where or [], as_json=as_json)
