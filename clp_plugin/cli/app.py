"""The command line: options and help. Each command is one function in :mod:`clp_plugin.cli.commands`, imported when called."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from clp_plugin.cli.leaderboard import leaderboard_app
from clp_plugin.cli.options import MAX_SEED, AsJson, Device, Listed, Registry, Root, Toolbox, refuse, takes
from clp_plugin.cli.requests import (
    AttackRequest,
    CorrelateRequest,
    DefendRequest,
    RecordRequest,
    ScanRequest,
    SweepRequest,
)
from clp_plugin.cli.toolbox import toolbox_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Repair backdoored image classifiers with Channel-Lipschitzness Pruning, and measure it honestly. "
    "--debug anywhere on the command line shows the traceback of an error.",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the record and the figures.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of images, trigger and training.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Attack a small network on built-in images, repair it with CLP, and show the evidence. Minutes on 2 cores."""
    from clp_plugin.cli.commands.demo import demo as command

    command(out=out, seed=seed, device=device, as_json=as_json)


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")] = "defenses",
    root: Annotated[Path, typer.Option(help="Folder whose records to list.")] = Path("runs"),
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """List what is on offer, or the records in a folder."""
    from clp_plugin.cli.commands.listing import list_catalogue, list_folder

    if what == "records":
        list_folder(root, registry=registry, as_json=as_json)
    else:
        list_catalogue(what, registry=registry, as_json=as_json)


@app.command()
@takes(AttackRequest)
def attack(request: AttackRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Train an attacked model and store it as a record. Killed runs go on where they stopped."""
    from clp_plugin.cli.commands.attack import attack_record
    from clp_plugin.records.opening import BENCH

    if request.toolbox not in (None, BENCH):
        ours = ("data", "width", "preset", "recipe", "image_size", "n_train", "n_test", "fixed_trigger", "evade")
        refuse(typed, *ours, where=f"for the scripts of {request.toolbox}")
    else:
        refuse(typed, "root", "time_limit", "fast_cpu", where="without --toolbox")
    attack_record(request, as_json=as_json)


@app.command()
@takes(RecordRequest)
def record(request: RecordRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Make a record of your own network, images and trigger, and say at once whether the attack fires."""
    from clp_plugin.cli.commands.record import record_parts

    record_parts(request, as_json=as_json)


@app.command()
@takes(ScanRequest)
def scan(request: ScanRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Show the outlying channels of one checkpoint, with no data at all, and optionally repair it."""
    from clp_plugin.cli.commands.scan import scan_checkpoint

    if request.surrogate:
        refuse(typed, "u", "layers", "parity", where="with --surrogate, which chooses the channels by a trigger")
    elif request.u != "auto":
        refuse(
            typed, "mean", "std", "seed", "device", where="without --surrogate or --u auto, which look for a trigger"
        )
    scan_checkpoint(request, as_json=as_json)


@app.command()
@takes(DefendRequest)
def defend(request: DefendRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Repair the model of a record and measure it before and after."""
    if request.impl == "toolbox":
        from clp_plugin.cli.commands.defend_toolbox import defend_with_toolbox

        refuse(typed, "scale", "n_budget", "protocol", where="for a toolbox's script; give its own --option")
        refuse(typed, "data", where="with --impl toolbox, whose records hold their images")
        refuse(typed, "out", "sweep", where="with --impl toolbox, whose results lie where its own tools look")
        defend_with_toolbox(request, as_json=as_json)
    else:
        from clp_plugin.cli.commands.defend import defend_record

        refuse(typed, "reuse", "time_limit", "fast_cpu", where="without --impl toolbox")
        defend_record(request, as_json=as_json)


@app.command()
@takes(CorrelateRequest)
def correlate(request: CorrelateRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """Correlate UCLC with the trigger-activated change, layer by layer (figure 3 of the paper)."""
    from clp_plugin.cli.commands.correlate import correlate_record

    correlate_record(request, as_json=as_json)


@app.command()
@takes(SweepRequest)
def sweep(request: SweepRequest, *, typed: frozenset[str], as_json: bool) -> None:
    """ACC, ASR and RA over u (figure 4 of the paper): scores once, each distinct mask evaluated once."""
    from clp_plugin.cli.commands.correlate import sweep_record

    if request.u != "auto":
        refuse(typed, "seed", where="without --u auto, which looks for a trigger")
    sweep_record(request, as_json=as_json)


@app.command()
def compare(
    record: Annotated[list[Path], typer.Option(help="As for `bench defend`; give it once for each record.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")],
    toolbox: Toolbox = None,
    root: Root = None,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Tables and figures of all that was run on some records: ACC, ASR, DER and time of each method, UCLC against TAC."""
    from clp_plugin.cli.commands.compare import compare_records

    compare_records(record, out, toolbox=toolbox, root=root, registry=registry, as_json=as_json)


app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(toolbox_app, name="toolbox")


def main() -> None:
    """Entry point of ``bench``."""
    from clp_plugin.cli.console import prepare_streams, run
    from clp_plugin.networks.memory import keep_freed_memory

    prepare_streams()
    keep_freed_memory()
    # As Ctrl-C does: what runs in child processes is stopped, and nothing temporary stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(app, sys.argv[1:]))
