"""The command line: options and help. Each command is one function in :mod:`clp_plugin.cli.commands`, imported when called."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from clp_plugin.cli.options import (
    AsJson,
    Device,
    FastCpu,
    Given,
    Implementation,
    Listed,
    Norm,
    NormName,
    OutFolder,
    Parity,
    ProtocolChoice,
    ProtocolName,
    RecordPath,
    Registry,
    Root,
    Scale,
    ScaleName,
    Score,
    ScoreName,
    TimeLimit,
    Toolbox,
    Trust,
    U,
    refuse,
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
    seed: Annotated[int, typer.Option(help="Of images, trigger and training.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Attack a small network on built-in images, repair it with CLP, and show the evidence. Minutes on 2 cores."""
    from clp_plugin.cli.commands.demo import demo as command

    command(out=out, seed=seed, device=device, as_json=as_json)


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")] = Listed.defenses,
    root: Annotated[Path, typer.Option(help="Folder whose records to list.")] = Path("runs"),
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """List what is on offer, or the records in a folder."""
    from clp_plugin.cli.commands.listing import list_catalogue, list_folder

    if what is Listed.records:
        list_folder(root, registry=registry, as_json=as_json)
    else:
        list_catalogue(what.value, registry=registry, as_json=as_json)


@app.command()
def attack(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the new record; with --toolbox its name in the checkout.")],
    method: Annotated[
        str, typer.Option(help="See `bench list attacks`; with --toolbox one of its scripts.")
    ] = "badnets",
    toolbox: Annotated[Optional[str], typer.Option(help="Run this toolbox's own script.")] = None,  # noqa: UP045
    root: Root = None,
    dataset: Annotated[
        Optional[str], typer.Option(help="digits (built in, default), cifar10, gtsrb, tiny_imagenet or folder.")  # noqa: UP045
    ] = None,
    data: Annotated[Optional[Path], typer.Option(help="Where the data set lies.")] = None,  # noqa: UP045
    model: Annotated[Optional[str], typer.Option(help="resnet18 (default), vgg16_bn, preactresnet18, ...")] = None,  # noqa: UP045
    width: Annotated[Optional[int], typer.Option(help="Channels of the first stage.")] = None,  # noqa: UP045
    target: Annotated[Optional[str], typer.Option(help="Target class (default 0), or `all` for all-to-all.")] = None,  # noqa: UP045
    poison_rate: Annotated[Optional[float], typer.Option(help="Share of poisoned images, default 0.1.")] = None,  # noqa: UP045
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Complete settings, before all other options: clp-paper (CIFAR-10), demo or small (digits)."),
    ] = None,
    recipe: Annotated[Optional[str], typer.Option(help="Named training recipe: clp-paper or demo.")] = None,  # noqa: UP045
    epochs: Annotated[Optional[int], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    weight_decay: Annotated[Optional[float], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    image_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Pixels a side, for folder, gtsrb and tiny_imagenet."),
    ] = None,
    n_train: Annotated[Optional[int], typer.Option(help="Use so many training images.")] = None,  # noqa: UP045
    n_test: Annotated[Optional[int], typer.Option(help="Use so many test images.")] = None,  # noqa: UP045
    fixed_trigger: Annotated[
        bool, typer.Option(help="Stamp training images after crop and flip, so that the trigger stays in its place.")
    ] = False,
    option: Given = None,
    time_limit: TimeLimit = None,
    fast_cpu: FastCpu = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
    force: Annotated[bool, typer.Option(help="Replace an existing record.")] = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Train an attacked model and store it as a record. Killed runs go on where they stopped."""
    changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
    given: dict[str, object] = {k: v for k, v in changes.items() if v is not None}
    if toolbox is not None and toolbox != "builtin":
        from clp_plugin.cli.commands.attack_toolbox import ToolboxAttackRequest, attack_with_toolbox

        ours = ("data", "width", "preset", "recipe", "image_size", "n_train", "n_test", "fixed_trigger")
        refuse(context, *ours, where=f"for the scripts of {toolbox}")
        what = {"dataset": dataset, "model": model, "target": target, "poison_rate": poison_rate}
        given |= {k: v for k, v in what.items() if v is not None}
        attack_with_toolbox(
            ToolboxAttackRequest(
                name=out, method=method, toolbox=toolbox, root=root, given=given, options=option or [],
                time_limit=time_limit, fast_cpu=fast_cpu, seed=seed, device=device, force=force, registry=registry,
            ),
            as_json=as_json,
        )  # fmt: skip
        return
    from clp_plugin.cli.commands.attack import AttackRequest, run_attack_command

    refuse(context, "root", "time_limit", "fast_cpu", where="without --toolbox")
    run_attack_command(
        AttackRequest(
            out=out, method=method, preset=preset, dataset=dataset, data=data, model=model, width=width,
            target=target, poison_rate=poison_rate, recipe=recipe, recipe_changes=given, n_train=n_train,
            n_test=n_test, image_size=image_size, fixed_trigger=fixed_trigger, seed=seed, device=device,
            force=force, registry=registry,
            attack_options=option or [],
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def scan(
    checkpoint: Annotated[Path, typer.Argument(help="A file or folder of weights, or a record's folder.")],
    arch: Annotated[
        Optional[str], typer.Option(help="torchvision:NAME, timm:NAME, builtin:NAME, or path/to/file.py:callable")  # noqa: UP045
    ] = None,
    arch_option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="NAME=VALUE, again and again: of the architecture, such as depth=16."),
    ] = None,
    key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Dotted path to the weights within the checkpoint. Default: the likeliest that fit."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Take the stored keys as they are; adapt nothing.")] = False,
    num_classes: Annotated[Optional[int], typer.Option(help="Default: read off the checkpoint.")] = None,  # noqa: UP045
    input_size: Annotated[Optional[str], typer.Option(help="C,H,W. Default: the architecture's usual one.")] = None,  # noqa: UP045
    u: U = None,
    score: Score = ScoreName.paper,
    norm: Norm = NormName.reshaped,
    parity: Parity = False,
    repair: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the repaired checkpoint, in the form that it came in; or .safetensors."),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Check the layers found against real tensors, by an independent rule.")
    ] = False,
    out: OutFolder = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Show the outlying channels of one checkpoint, with no data at all, and optionally repair it."""
    from clp_plugin.cli.commands.scan import ScanRequest, scan_checkpoint

    scan_checkpoint(
        ScanRequest(
            checkpoint=checkpoint, arch=arch, arch_option=arch_option or [], key=key, strict=strict,
            num_classes=num_classes, input_size=input_size, u=u, score=score.value,
            norm=norm.value, parity=parity, repair=repair, verify=verify, out=out, trust=trust,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def defend(
    context: typer.Context,
    record: RecordPath,
    method: Annotated[str, typer.Option(help="See `bench list defenses`; with --impl toolbox one of its own.")] = "clp",
    impl: Annotated[
        Implementation,
        typer.Option(help="own: this package's; toolbox: its unmodified script, in a process of its own."),
    ] = Implementation.own,
    toolbox: Toolbox = None,
    root: Root = None,
    u: U = None,
    score: Annotated[Optional[ScoreName], typer.Option(help="For clp: paper or relative.")] = None,  # noqa: UP045
    norm: Annotated[Optional[NormName], typer.Option(help="For clp: reshaped or exact.")] = None,  # noqa: UP045
    parity: Parity = False,
    option: Given = None,
    scale: Scale = ScaleName.paper,
    n_budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images that a defense with a budget sees. Default: 500, or all of a record that has fewer."),
    ] = None,
    protocol: ProtocolChoice = ProtocolName.defender,
    sweep: Annotated[str, typer.Option(help="clp on a toolbox's record: u of its sweep file, or `none`.")] = "0:10:0.5",
    reuse: Annotated[bool, typer.Option(help="--impl toolbox: measure the result that is there.")] = False,
    time_limit: TimeLimit = None,
    fast_cpu: FastCpu = False,
    seed: Annotated[int, typer.Option(help="Of the defense.")] = 0,
    device: Device = "auto",
    out: OutFolder = None,
    force: Annotated[bool, typer.Option(help="Replace another result.")] = False,
    trust: Trust = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Repair the model of a record and measure it before and after."""
    from clp_plugin.cli.commands.defend import DefendRequest, defend_record
    from clp_plugin.cli.option_values import parse_options

    named = {
        "u": u,
        "score": score and score.value,
        "norm": norm and norm.value,
        "pairing": "registration" if parity else None,
    }
    options = {**parse_options(option or []), **{k: v for k, v in named.items() if v is not None}}
    request = DefendRequest(
        record=record, method=method, options=options, toolbox=toolbox, root=root, seed=seed, device=device, out=out,
        sweep=None if sweep == "none" else sweep, force=force, trust=trust, registry=registry, n_budget=n_budget,
        protocol=protocol.value, scale=scale.value,
    )  # fmt: skip
    if impl is Implementation.toolbox:
        from clp_plugin.cli.commands.defend_toolbox import ToolboxRunOptions, defend_with_toolbox

        refuse(context, "scale", "n_budget", "protocol", where="for a toolbox's script; give its own --option")
        refuse(context, "out", "sweep", where="with --impl toolbox, whose results lie where its own tools look")
        how = ToolboxRunOptions(time_limit=time_limit, fast_cpu=fast_cpu, reuse=reuse, quiet=as_json)
        defend_with_toolbox(request, how, as_json=as_json)
    else:
        refuse(context, "reuse", "time_limit", "fast_cpu", where="without --impl toolbox")
        defend_record(request, as_json=as_json)


@app.command()
def matrix(
    out: Annotated[Path, typer.Option(help="Folder for the records, their outcomes and the tables.")] = Path(
        "runs/matrix"
    ),
    attack: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Again and again; NAME:all for all-to-all, NAME:3 for target 3. Default: all there are."),
    ] = None,
    defense: Annotated[Optional[list[str]], typer.Option(help="Again and again. Default: all there are.")] = None,  # noqa: UP045
    seeds: Annotated[str, typer.Option(help="0,1 or 0:3; of attacks and defenses.")] = "0,1",
    preset: Annotated[str, typer.Option(help="Of the attacks: small, demo or clp-paper.")] = "small",
    scale: Scale = ScaleName.small,
    protocol: ProtocolChoice = ProtocolName.defender,
    device: Device = "auto",
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Run every defense on every attack on the built-in bench. What is there already is not run again."""
    from clp_plugin.cli.commands.matrix import MatrixRequest, parse_seeds, run_matrix

    run_matrix(
        MatrixRequest(
            out=out, attacks=attack or [], defenses=defense or [], seeds=parse_seeds(seeds), preset=preset,
            scale=scale.value, protocol=protocol.value, device=device, registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def correlate(
    record: RecordPath,
    toolbox: Toolbox = None,
    root: Root = None,
    u: U = None,
    score: Score = ScoreName.paper,
    norm: Norm = NormName.reshaped,
    tac_norm: Annotated[str, typer.Option(help="l2: the paper's; l1: BackdoorBench's.")] = "l2",
    max_images: Annotated[Optional[int], typer.Option(help="Use only so many image pairs.")] = None,  # noqa: UP045
    device: Device = "auto",
    out: OutFolder = None,
    trust: Trust = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Correlate UCLC with the trigger-activated change, layer by layer (figure 3 of the paper)."""
    from clp_plugin.cli.commands.correlate import CorrelateRequest, correlate_record

    correlate_record(
        CorrelateRequest(
            record=record, toolbox=toolbox, root=root, u=u, score=score.value, norm=norm.value, tac_norm=tac_norm,
            max_images=max_images, device=device, out=out, trust=trust, registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def sweep(
    record: RecordPath,
    u: Annotated[str, typer.Option(help="FIRST:LAST:STEP (both ends included) or a list.")] = "0:10:0.5",
    toolbox: Toolbox = None,
    root: Root = None,
    score: Score = ScoreName.paper,
    norm: Norm = NormName.reshaped,
    parity: Parity = False,
    device: Device = "auto",
    out: OutFolder = None,
    trust: Trust = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """ACC, ASR and RA over u (figure 4 of the paper): scores once, each distinct mask evaluated once."""
    from clp_plugin.cli.commands.correlate import SweepRequest, sweep_record

    sweep_record(
        SweepRequest(
            record=record, values=u, toolbox=toolbox, root=root, score=score.value, norm=norm.value, parity=parity,
            device=device, out=out, trust=trust, registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


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


app.add_typer(toolbox_app, name="toolbox")


def main() -> None:
    """Entry point of ``bench``."""
    from clp_plugin.cli.console import run
    from clp_plugin.networks.memory import keep_freed_memory

    keep_freed_memory()
    # As Ctrl-C does: what runs in child processes is stopped, and nothing temporary stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(app, sys.argv[1:]))
