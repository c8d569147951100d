"""``bench toolbox``: options and help of its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clp_plugin.cli.options import AsJson, Registry, Root

toolbox_app = typer.Typer(
    no_args_is_help=True,
    help="Install a toolbox, see what of it runs here, register this plugin in it. The checkout is found from --root, the "
    "variable TOOLBOX_ROOT (for example BACKDOORBENCH_ROOT), the configuration file, or the current folder, in that order.",
)
ToolboxName = Annotated[str, typer.Argument(help="See `bench list toolboxes`.")]


@toolbox_app.command()
def install(
    name: ToolboxName,
    source: Annotated[str | None, typer.Option(help="URL or folder of a git repository.")] = None,
    ref: Annotated[str | None, typer.Option(help="Commit, tag or branch. Default: the commit we tested.")] = None,
    destination: Annotated[Path | None, typer.Option(help="Default: the user's data folder.")] = None,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Clone a toolbox at a pinned commit and remember where it is."""
    from clp_plugin.cli.commands.toolbox import install as command

    command(name, source=source, ref=ref, destination=destination, registry=registry, as_json=as_json)


@toolbox_app.command()
def check(name: ToolboxName, root: Root = None, registry: Registry = None, as_json: AsJson = False) -> None:
    """Say which commit the checkout is at, which of its scripts start here, and what to install for the others.

    Imports the scripts, which runs their code: only checkouts whose source you know.
    """
    from clp_plugin.cli.commands.toolbox import check as command

    command(name, root=root, registry=registry, as_json=as_json)


@toolbox_app.command()
def register(
    name: ToolboxName,
    script: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: a script of the toolbox and its arguments, for one whose registry is in memory."
        ),
    ] = None,
    root: Root = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take this plugin out again.")] = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Add this plugin to a toolbox's defenses, in its own habit: to its checkout, or to its registry for one script."""
    from clp_plugin.cli.commands.toolbox import register as command
    from clp_plugin.cli.commands.toolbox import run_script

    if script:
        run_script(name, Path(script[0]), script[1:], root=root, registry=registry)
        return
    command(name, root=root, remove=remove, registry=registry, as_json=as_json)
