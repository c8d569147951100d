"""The options of the commands: one dataclass a command, whose fields are its options, stated nowhere else.

Imports nothing heavy, since ``bench --help`` shows all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from clp_plugin.cli.options import (
    MAX_SEED,
    Arch,
    ArchOptions,
    Data,
    Device,
    FastCpu,
    Given,
    Implementation,
    Key,
    Layers,
    Mean,
    NBudget,
    Norm,
    NormName,
    NumClasses,
    OutFolder,
    Parity,
    ProtocolChoice,
    RecordPath,
    Registry,
    Root,
    Scale,
    Score,
    ScoreName,
    SearchSeed,
    Std,
    Strict,
    TimeLimit,
    Toolbox,
    Trust,
    U,
    UOrAuto,
    parse_u,
)
from clp_plugin.files.option_values import parse_options

USUAL_SWEEP = "0:10:0.5"


@dataclass(frozen=True)
class AttackRequest:
    """The options of ``bench attack``, with the built-in bench as with a toolbox's own scripts."""

    out: Annotated[Path, typer.Option(help="Folder of the new record; with --toolbox its name in the checkout.")]
    method: Annotated[str, typer.Option(help="See `bench list attacks`; with --toolbox one of its scripts.")] = (
        "badnets"
    )
    toolbox: Annotated[str | None, typer.Option(help="Run this toolbox's own script.")] = None
    root: Root = None
    dataset: Annotated[
        str | None, typer.Option(help="digits (built in, default), cifar10, gtsrb, tiny_imagenet or folder.")
    ] = None
    data: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None
    model: Annotated[str | None, typer.Option(help="resnet18 (default), vgg16_bn, preactresnet18, ...")] = None
    width: Annotated[int | None, typer.Option(help="Channels of the first stage.")] = None
    target: Annotated[str | None, typer.Option(help="Target class (default 0), or `all` for all-to-all.")] = None
    poison_rate: Annotated[float | None, typer.Option(help="Share of poisoned images (0.1); 0: a clean twin.")] = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="Complete settings, before all other options: clp-paper, cifar10-resnet20, demo or small (the two on digits)."
        ),
    ] = None
    recipe: Annotated[str | None, typer.Option(help="Named training recipe: clp-paper, small-network or demo.")] = None
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None
    lr: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None
    weight_decay: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None
    image_size: Annotated[int | None, typer.Option(help="Pixels a side, for folder, gtsrb and tiny_imagenet.")] = None
    n_train: Annotated[int | None, typer.Option(help="Use so many training images.")] = None
    n_test: Annotated[int | None, typer.Option(help="Use so many test images.")] = None
    fixed_trigger: Annotated[
        bool, typer.Option(help="Stamp training images after crop and flip, so that the trigger stays in its place.")
    ] = False
    evade: Annotated[
        list[str],
        typer.Option(
            help="Hide the backdoor while training: sigma (from CLP), search (from a sought trigger); again and again."
        ),
    ] = field(default_factory=list)
    option: Given = field(default_factory=list)
    time_limit: TimeLimit = None
    fast_cpu: FastCpu = False
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of everything random.")] = 0
    device: Device = "auto"
    force: Annotated[bool, typer.Option(help="Replace an existing record.")] = False
    registry: Registry = None

    @property
    def given(self) -> dict[str, object]:
        """The options that describe the record, in the words of this command; an adapter translates them."""
        asked = (
            "preset", "dataset", "data", "model", "width", "target", "poison_rate", "recipe", "epochs", "batch_size", "lr",
            "weight_decay", "image_size", "n_train", "n_test", "fixed_trigger", "evade",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in asked}
        # 0 is given: --poison-rate 0 makes a clean twin.
        return {name: value for name, value in values.items() if not (value is None or value is False or value == [])}


@dataclass(frozen=True)
class RecordRequest:
    """The options of ``bench record``."""

    checkpoint: Annotated[Path, typer.Option(help="A file or folder of weights.")]
    images: Annotated[
        Path, typer.Option(help="Class folders, a folder with a CSV, an .npz (x, y), an .npy, or CIFAR's batches.")
    ]
    out: Annotated[Path, typer.Option(help="Folder of the new record.")]
    target: Annotated[str | None, typer.Option(help="What the attacker wants: a class number, `all`, or `all+2`.")] = (
        None
    )
    trigger: Annotated[Path | None, typer.Option(help="A picture or an .npy that is put on the images.")] = None
    trigger_mask: Annotated[Path | None, typer.Option(help="How much of the image the trigger covers.")] = None
    at: Annotated[str | None, typer.Option(help="Where: a corner such as bottom-right, or X,Y.")] = None
    blend: Annotated[float | None, typer.Option(help="Mix the trigger in, with this share of it.")] = None
    add: Annotated[bool, typer.Option(help="Add the trigger to the image.")] = False
    triggered: Annotated[Path | None, typer.Option(help="Images that carry the trigger already.")] = None
    arch: Arch = None
    arch_option: ArchOptions = field(default_factory=list)
    key: Key = None
    strict: Strict = False
    num_classes: NumClasses = None
    input_size: Annotated[str | None, typer.Option(help="C,H,W. Default: that of the images.")] = None
    labels: Annotated[Path | None, typer.Option(help="Labels of the images: a CSV or an .npy.")] = None
    mean: Mean = None
    std: Std = None
    n_test: Annotated[int | None, typer.Option(help="Test on so many images. Default: all that are left.")] = None
    n_benign: Annotated[int, typer.Option(help="Keep so many images for defenses that need some.")] = 0
    copy: Annotated[bool, typer.Option(help="Keep copies of all parts in the record.")] = False
    toolbox: Annotated[
        str | None, typer.Option(help="The checkpoint is of this toolbox, whose own files say what they can.")
    ] = None
    attack: Annotated[str | None, typer.Option(help="The attack's name, for tables.")] = None
    dataset: Annotated[str | None, typer.Option(help="The data set's name, for tables.")] = None
    poison_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the training images that was poisoned.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the draw of test and benign images.")] = 0
    device: Device = "auto"
    force: Annotated[bool, typer.Option(help="Replace another record and all below it.")] = False
    registry: Registry = None
    trust: Trust = False


@dataclass(frozen=True)
class ScanRequest:
    """The options of ``bench scan``."""

    checkpoint: Annotated[Path, typer.Argument(help="A file or folder of weights, or a record's folder.")]
    arch: Arch = None
    arch_option: ArchOptions = field(default_factory=list)
    key: Key = None
    strict: Strict = False
    num_classes: NumClasses = None
    input_size: Annotated[str | None, typer.Option(help="C,H,W. Default: the architecture's usual one.")] = None
    u: UOrAuto = None
    score: Score = "paper"
    norm: Norm = "reshaped"
    layers: Layers = "fused,diagonal"
    parity: Parity = False
    surrogate: Annotated[
        bool,
        typer.Option(help="Look for a trigger in the weights, and prune what it drives. Minutes; a hint, no verdict."),
    ] = False
    repair: Annotated[
        Path | None,
        typer.Option(help="Write the repaired checkpoint, in the form that it came in; or .safetensors."),
    ] = None
    mean: Mean = None
    std: Std = None
    seed: SearchSeed = 0
    device: Device = "auto"
    verify: Annotated[
        bool, typer.Option(help="Check the layers found against real tensors, by an independent rule.")
    ] = False
    out: OutFolder = None
    trust: Trust = False


@dataclass(frozen=True)
class DefendRequest:
    """The options of ``bench defend``."""

    record: RecordPath
    method: Annotated[str, typer.Option(help="See `bench list defenses`; with --impl toolbox one of its own.")] = "clp"
    impl: Annotated[
        Implementation,
        typer.Option(help="own: this package's; toolbox: its unmodified script, in a process of its own."),
    ] = "own"
    toolbox: Toolbox = None
    root: Root = None
    data: Data = None
    u: UOrAuto = None
    score: Annotated[ScoreName | None, typer.Option(help="For clp: paper or relative.")] = None
    norm: Annotated[NormName | None, typer.Option(help="For clp: reshaped or exact.")] = None
    layers: Annotated[
        str | None,
        typer.Option(help="For clp: kinds to prune, fused,diagonal; ...,conv adds convolutions without BatchNorm."),
    ] = None
    parity: Parity = False
    option: Given = field(default_factory=list)
    scale: Scale = "paper"
    n_budget: NBudget = None
    protocol: ProtocolChoice = "defender"
    sweep: Annotated[
        str | None,
        typer.Option(
            help="clp on a toolbox's record: evaluate these u too, FIRST:LAST:STEP or a list, for its sweep file.",
            callback=lambda typed: None if typed == "none" else typed,
        ),
    ] = None
    reuse: Annotated[bool, typer.Option(help="--impl toolbox: measure the result that is there.")] = False
    time_limit: TimeLimit = None
    fast_cpu: FastCpu = False
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the defense.")] = 0
    device: Device = "auto"
    out: OutFolder = None
    force: Annotated[bool, typer.Option(help="Replace another result.")] = False
    trust: Trust = False
    registry: Registry = None

    @property
    def options(self) -> dict[str, Any]:
        """The method's options: those of ``--option``, and over them those that have an option of their own."""
        named = {
            "u": None if self.u is None else parse_u(self.u),
            "score": self.score,
            "norm": self.norm,
            "layers": self.layers,
            "pairing": "registration" if self.parity else None,
        }
        return {**parse_options(self.option), **{name: value for name, value in named.items() if value is not None}}


@dataclass(frozen=True)
class CorrelateRequest:
    """The options of ``bench correlate``."""

    record: RecordPath
    toolbox: Toolbox = None
    root: Root = None
    data: Data = None
    u: U = None
    score: Score = "paper"
    norm: Norm = "reshaped"
    layers: Layers = "fused,diagonal"
    tac_norm: Annotated[str, typer.Option(help="l2: the paper's; l1: BackdoorBench's.")] = "l2"
    max_images: Annotated[int | None, typer.Option(help="Use only so many image pairs.")] = None
    device: Device = "auto"
    out: OutFolder = None
    trust: Trust = False
    registry: Registry = None


@dataclass(frozen=True)
class SweepRequest:
    """The options of ``bench sweep``."""

    record: RecordPath
    u: Annotated[
        str,
        typer.Option(
            help="FIRST:LAST:STEP (both ends included) or a list. auto: the usual ones, and the u of --u auto."
        ),
    ] = USUAL_SWEEP
    toolbox: Toolbox = None
    root: Root = None
    data: Data = None
    score: Score = "paper"
    norm: Norm = "reshaped"
    layers: Layers = "fused,diagonal"
    parity: Parity = False
    seed: SearchSeed = 0
    device: Device = "auto"
    out: OutFolder = None
    trust: Trust = False
    registry: Registry = None
