"""``bench leaderboard``: options and help of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clp_plugin.cli.grid_request import GridRequest
from clp_plugin.cli.options import AsJson, Data, takes

leaderboard_app = typer.Typer(
    no_args_is_help=True,
    help="Run methods on records of any toolbox, and rank them over all outcomes that lie below some folders: a table, the "
    "paper's tables and figures, or one HTML file that people explore.",
)
Folders = Annotated[
    list[Path] | None, typer.Argument(help="Records, or folders that hold records, of any toolbox; default: runs.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="COLUMN=VALUE, again and again: only these outcomes, such as attack=badnets; one of several values of one column."
    ),
]
SortedBy = Literal["der", "acc", "asr", "ra"]
GroupedBy = Literal["attack", "dataset", "architecture", "poison_rate", "toolbox", "record"]
_DEFAULT = Path("runs")


@leaderboard_app.command()
@takes(GridRequest)
def run(request: GridRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Run every method on every record, and store an outcome a cell. What is there already is not run again."""
    from clp_plugin.cli.commands.leaderboard_run import run_grid

    run_grid(request, typed=typed, as_json=as_json)


@leaderboard_app.command()
def add(
    sources: Annotated[list[Path], typer.Argument(help="Outcomes from elsewhere: files, or folders that hold some.")],
    to: Annotated[Path, typer.Option(help="The leaderboard's folder.")] = Path("runs/leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Let outcomes of somebody else's machine join, and say of which records and by whom they are."""
    from clp_plugin.cli.commands.leaderboard_add import add_outcomes

    add_outcomes(sources, to, as_json=as_json)


@leaderboard_app.command()
def show(
    folders: Folders = None,
    sort: Annotated[SortedBy, typer.Option(help="What orders the methods.")] = "der",
    by: Annotated[GroupedBy | None, typer.Option(help="A table for each value of it.")] = None,
    where: Where = None,
    as_json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV: all columns, fractions as fractions.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX, for the package booktabs.")] = False,
) -> None:
    """Rank the methods, and say where the records at hand cannot tell them apart."""
    from clp_plugin.cli.commands.leaderboard import chosen_form, show_leaderboard

    form = chosen_form(json=as_json, csv=csv, markdown=markdown, latex=latex)
    show_leaderboard(folders or [_DEFAULT], sort=sort, by=by, where=where or [], form=form)


@leaderboard_app.command()
def tables(
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")],
    folders: Folders = None,
    by: Annotated[
        Literal["attack", "record", "poison_rate", "architecture", "dataset"],
        typer.Option(help="What a row stands for; record: records of one name but for their seed."),
    ] = "attack",
    where: Where = None,
    critical_difference: Annotated[
        bool,
        typer.Option(
            "--critical-difference", help="Draw mean ranks and which of them the records cannot separate, too."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the paper's tables (Markdown, LaTeX, CSV) and figures for these records, and figures that compare methods."""
    from clp_plugin.cli.commands.leaderboard_tables import write_tables

    write_tables(
        folders or [_DEFAULT], out, by=by, where=where or [], critical_difference=critical_difference, as_json=as_json
    )


@leaderboard_app.command()
def page(
    folders: Folders = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Leaderboard",
    where: Where = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Leave the records' sample images out.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file with leaderboard, comparison and records, which needs no network."""
    from clp_plugin.cli.commands.leaderboard_page import write_page

    write_page(
        folders or [_DEFAULT], out, title=title, where=where or [], images=not no_images, data=data, as_json=as_json
    )
