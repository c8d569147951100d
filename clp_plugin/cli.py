"""The command line: options and help. Each command is one function in :mod:`clp_plugin.commands`, imported when called."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Repair backdoored image classifiers with Channel-Lipschitzness Pruning, and measure it honestly. "
    "--debug anywhere on the command line shows the traceback of an error.",
)


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


# typer evaluates annotations at run time, so Optional instead of `X | None`, which Python 3.10 cannot give it.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, typer.Option(help="Allow pickles that run code. Only for files you know.")]
Registry = Annotated[Optional[Path], typer.Option(help="A file like registry.yaml that adds entries.")]  # noqa: UP045
Toolbox = Annotated[Optional[str], typer.Option(help="Toolbox of the record; found out if not given.")]  # noqa: UP045
RecordPath = Annotated[Path, typer.Option(help="The record's folder.")]
OutFolder = Annotated[Optional[Path], typer.Option(help="Folder for the results.")]  # noqa: UP045
U = Annotated[Optional[float], typer.Option(help="Prune above mean + u * std. Default: per data set, 3 for CIFAR-10.")]  # noqa: UP045
Score = Annotated[
    ScoreName, typer.Option(help="paper: sigma of the fused kernel; relative: in units of a channel's own response.")
]
Norm = Annotated[NormName, typer.Option(help="reshaped: the paper's; exact: of the convolution as an operator.")]
Parity = Annotated[
    bool, typer.Option(help="Prune exactly what the published code prunes (its pairing, unbiased std, no eps).")
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the record and the figures.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of images, trigger and training.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Attack a small network on built-in images, repair it with CLP, and show the evidence. Minutes on 2 cores."""
    from clp_plugin.commands.demo import demo as command

    command(out=out, seed=seed, device=device, as_json=as_json)


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")] = Listed.defenses,
    root: Annotated[Path, typer.Option(help="Folder whose records to list.")] = Path("runs"),
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """List what is on offer, or the records in a folder."""
    from clp_plugin.commands.listing import list_catalogue, list_folder

    if what is Listed.records:
        list_folder(root, registry=registry, as_json=as_json)
    else:
        list_catalogue(what.value, registry=registry, as_json=as_json)


@app.command()
def attack(
    out: Annotated[Path, typer.Option(help="Folder of the new record.")],
    method: Annotated[str, typer.Option(help="See `bench list attacks`.")] = "badnets",
    dataset: Annotated[
        str, typer.Option(help="digits (built in), cifar10, or folder (any ImageFolder tree).")
    ] = "digits",
    data: Annotated[Optional[Path], typer.Option(help="Where the data set lies.")] = None,  # noqa: UP045
    model: Annotated[str, typer.Option(help="resnet18, resnet34, vgg16_bn, preactresnet18, senet18, ...")] = "resnet18",
    width: Annotated[Optional[int], typer.Option(help="Channels of the first stage.")] = None,  # noqa: UP045
    target: Annotated[str, typer.Option(help="Target class, or `all` for all-to-all.")] = "0",
    poison_rate: Annotated[float, typer.Option(help="Share of the training images that is poisoned.")] = 0.1,
    recipe: Annotated[str, typer.Option(help="Named training recipe: clp-paper or demo.")] = "clp-paper",
    epochs: Annotated[Optional[int], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    weight_decay: Annotated[Optional[float], typer.Option(help="Instead of the recipe's.")] = None,  # noqa: UP045
    n_train: Annotated[Optional[int], typer.Option(help="Use so many training images.")] = None,  # noqa: UP045
    n_test: Annotated[Optional[int], typer.Option(help="Use so many test images.")] = None,  # noqa: UP045
    fixed_trigger: Annotated[
        bool, typer.Option(help="Stamp training images after crop and flip, so that the trigger stays in its place.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
    force: Annotated[bool, typer.Option(help="Replace an existing record.")] = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Train an attacked model and store it as a record. Killed runs go on where they stopped."""
    from clp_plugin.commands.attack import AttackRequest, run_attack_command

    changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
    run_attack_command(
        AttackRequest(
            out=out, method=method, dataset=dataset, data=data, model=model, width=width, target=target,
            poison_rate=poison_rate, recipe=recipe, recipe_changes={k: v for k, v in changes.items() if v is not None},
            n_train=n_train, n_test=n_test, fixed_trigger=fixed_trigger, seed=seed, device=device, force=force,
            registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def scan(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt, .pth or .safetensors file, or a record's folder.")],
    arch: Annotated[
        Optional[str], typer.Option(help="torchvision:NAME, timm:NAME, builtin:NAME, or path/to/file.py:callable")  # noqa: UP045
    ] = None,
    num_classes: Annotated[Optional[int], typer.Option(help="Default: read off the checkpoint.")] = None,  # noqa: UP045
    input_size: Annotated[Optional[str], typer.Option(help="C,H,W. Default: the architecture's usual one.")] = None,  # noqa: UP045
    u: U = None,
    score: Score = ScoreName.paper,
    norm: Norm = NormName.reshaped,
    parity: Parity = False,
    repair: Annotated[Optional[Path], typer.Option(help="Write the repaired checkpoint (.safetensors or .pt).")] = None,  # noqa: UP045
    verify: Annotated[
        bool, typer.Option(help="Check the layers found against real tensors, by an independent rule.")
    ] = False,
    out: OutFolder = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Show the outlying channels of one checkpoint, with no data at all, and optionally repair it."""
    from clp_plugin.commands.scan import ScanRequest, scan_checkpoint

    scan_checkpoint(
        ScanRequest(
            checkpoint=checkpoint, arch=arch, num_classes=num_classes, input_size=input_size, u=u, score=score.value,
            norm=norm.value, parity=parity, repair=repair, verify=verify, out=out, trust=trust,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def defend(
    record: RecordPath,
    method: Annotated[str, typer.Option(help="See `bench list defenses`.")] = "clp",
    toolbox: Toolbox = None,
    u: U = None,
    score: Annotated[Optional[ScoreName], typer.Option(help="For clp: paper or relative.")] = None,  # noqa: UP045
    norm: Annotated[Optional[NormName], typer.Option(help="For clp: reshaped or exact.")] = None,  # noqa: UP045
    parity: Parity = False,
    seed: Annotated[int, typer.Option(help="Of the defense.")] = 0,
    device: Device = "auto",
    out: OutFolder = None,
    trust: Trust = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Repair the model of a record and measure it before and after."""
    from clp_plugin.commands.defend import DefendRequest, defend_record

    given = {
        "u": u,
        "score": score and score.value,
        "norm": norm and norm.value,
        "pairing": "registration" if parity else None,
    }
    defend_record(
        DefendRequest(
            record=record, method=method, options={k: v for k, v in given.items() if v is not None}, toolbox=toolbox,
            seed=seed, device=device, out=out, trust=trust, registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def correlate(
    record: RecordPath,
    toolbox: Toolbox = None,
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
    from clp_plugin.commands.analyze import CorrelateRequest, correlate_record

    correlate_record(
        CorrelateRequest(
            record=record, toolbox=toolbox, u=u, score=score.value, norm=norm.value, tac_norm=tac_norm,
            max_images=max_images, device=device, out=out, trust=trust, registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


@app.command()
def sweep(
    record: RecordPath,
    u: Annotated[str, typer.Option(help="FIRST:LAST:STEP (both ends included) or a list.")] = "0:10:0.5",
    toolbox: Toolbox = None,
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
    from clp_plugin.commands.analyze import SweepRequest, sweep_record

    sweep_record(
        SweepRequest(
            record=record, values=u, toolbox=toolbox, score=score.value, norm=norm.value, parity=parity, device=device,
            out=out, trust=trust, registry=registry,
        ),
        as_json=as_json,
    )  # fmt: skip


def main() -> None:
    """Entry point of ``bench``."""
    from clp_plugin.console import run

    sys.exit(run(app, sys.argv[1:]))
