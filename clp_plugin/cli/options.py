"""Options that several commands share, and how a command gets its options from the fields of a request."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from clp_plugin.errors import ConfigError

Listed = Literal["toolboxes", "defenses", "attacks", "records"]
ScoreName = Literal["paper", "relative"]
NormName = Literal["reshaped", "exact"]
ScaleName = Literal["paper", "small"]
ProtocolName = Literal["defender", "oracle"]
Implementation = Literal["own", "toolbox"]
ExecutorName = Literal["local", "ray"]
MAX_SEED = 2**32 - 1  # what numpy's and torch's generators both take

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, typer.Option(help="Allow pickles that run code. Only for files you know.")]
Registry = Annotated[
    Path | None,
    typer.Option(help="A file like registry.yaml that adds entries. What it names is run: only files you know."),
]
Toolbox = Annotated[str | None, typer.Option(help="Toolbox of the record; found out if not given.")]
Root = Annotated[Path | None, typer.Option(help="The toolbox's checkout; see `bench toolbox --help`.")]
RecordPath = Annotated[Path, typer.Option(help="The record's folder, or with --toolbox its name in the checkout.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Where the data set lies that a record without images borrows. Default: $CLP_PLUGIN_CIFAR10, or as configured."
    ),
]
Given = Annotated[list[str], typer.Option("--option", help="NAME=VALUE, again and again: any option.")]
TimeLimit = Annotated[float | None, typer.Option(help="Stop the toolbox's script after so many seconds.")]
FastCpu = Annotated[
    bool, typer.Option(help="Toolbox's scripts without a GPU: bfloat16 and channels-last. Numbers change a little.")
]
Scale = Annotated[
    ScaleName, typer.Option(help="paper: the published settings; small: about a minute on 2 cores with small networks.")
]
ProtocolChoice = Annotated[
    ProtocolName, typer.Option("--protocol", help="oracle: choose thresholds by the test set, as toolboxes do; marked.")
]
NBudget = Annotated[
    int | None,
    typer.Option(help="Images that a defense with a budget sees. Default: 500, or all of a record that has fewer."),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="torchvision:NAME, timm:NAME, builtin:NAME, or path/to/file.py:callable, which is run: only files you know."
    ),
]
ArchOptions = Annotated[
    list[str], typer.Option(help="NAME=VALUE, again and again: of the architecture, such as depth=16.")
]
Key = Annotated[
    str | None, typer.Option(help="Dotted path to the weights within the checkpoint. Default: the likeliest that fit.")
]
Strict = Annotated[bool, typer.Option(help="Take the stored keys as they are; adapt nothing.")]
NumClasses = Annotated[int | None, typer.Option(help="Default: read off the checkpoint.")]
OutFolder = Annotated[Path | None, typer.Option(help="Folder for the results.")]
U = Annotated[float | None, typer.Option(help="Prune above mean + u * std. Default: per data set, 3 for CIFAR-10.")]
UOrAuto = Annotated[
    str | None,
    typer.Option(
        help="Prune above mean + u * std. Default: per data set, 3 for CIFAR-10. auto: by a trigger sought in the weights."
    ),
]
Mean = Annotated[str | None, typer.Option(help="One number or one a channel, images in [0, 1]. Default: 0.")]
Std = Annotated[str | None, typer.Option(help="One number or one a channel, images in [0, 1]. Default: 1.")]
SearchSeed = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, help="Of the search for a trigger, where there is one.")
]
Score = Annotated[
    ScoreName, typer.Option(help="paper: sigma of the fused kernel; relative: in units of a channel's own response.")
]
Layers = Annotated[
    str, typer.Option(help="Kinds of layers to prune; fused,diagonal,conv adds convolutions without BatchNorm.")
]
Norm = Annotated[NormName, typer.Option(help="reshaped: the paper's; exact: of the convolution as an operator.")]
Parity = Annotated[
    bool, typer.Option(help="Prune exactly what the published code prunes (its pairing, unbiased std, no eps).")
]

Request = TypeVar("Request")


def takes(request: type[Request]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a request as its options; their help and defaults are stated in the request alone.

    The command is called with the filled request, with ``typed``, the names of the fields that stand on the command line, and
    with ``as_json``.

    Args:
        request: A dataclass whose fields are annotated for typer.
    """
    hints = get_type_hints(request, include_extras=True)
    # Every field of a dataclass type is public: mypy knows no protocol for them.
    stated: tuple[Field[Any], ...] = fields(request)  # type: ignore[arg-type]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(context: typer.Context, as_json: bool, **options: Any) -> None:
            typed = frozenset(name for name in options if _on_the_command_line(context, name))
            command(request(**options), typed=typed, as_json=as_json)

        parameters = [_parameter("context", typer.Context)]
        parameters += [_parameter(each.name, hints[each.name], _default(each)) for each in stated]
        parameters.append(_parameter("as_json", AsJson, False))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def parse_u(text: str) -> float | Literal["auto"]:
    """A threshold as it was typed.

    Raises:
        ConfigError: If it is neither a number nor ``auto``.
    """
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--u: expected a number such as 2.5, or auto; found {text!r}") from None


def refuse(typed: frozenset[str], *names: str, where: str) -> None:
    """An option that would be ignored is a mistake to be said, not passed over.

    Args:
        typed: The names of the options that stand on the command line.
        names: The options that have no meaning here.
        where: The case in which they have none, for the message.

    Raises:
        ConfigError: If one of the named options was typed.
    """
    for name in names:
        if name in typed:
            raise ConfigError(f"--{name.replace('_', '-')} has no meaning {where}; leave it out")


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return inspect.Parameter.empty if field.default_factory is MISSING else field.default_factory()


def _on_the_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
