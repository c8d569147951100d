"""The network that ``bench scan`` looks at: a checkpoint of a user, or a record's; and the repaired one written back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from clp_plugin.cli.console import say
from clp_plugin.cli.requests import ScanRequest
from clp_plugin.errors import ConfigError
from clp_plugin.files.checkpoints import require_weights_suffix, save_weights
from clp_plugin.files.marks import weights_to_write
from clp_plugin.files.option_values import parse_numbers, parse_options
from clp_plugin.files.shards import find_index
from clp_plugin.networks.loading import LoadedNetwork, Shape, load_network
from clp_plugin.records.opening import open_network
from clp_plugin.records.parts import normalization

_CHECKPOINT_OPTIONS = ("arch_option", "key", "strict", "num_classes", "input_size", "mean", "std")


@dataclass(frozen=True)
class Subject:
    """The network that is scanned.

    Attributes:
        model: The network, in eval mode.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of its normalization for each channel, on the [0, 1] scale.
        std: Standard deviation of that normalization, per channel, on the [0, 1] scale.
        loaded: How a checkpoint became the network; None for a record's.
    """

    model: nn.Module
    input_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loaded: LoadedNetwork | None


def load_subject(request: ScanRequest) -> Subject:
    """The network of a record's folder, which says all itself, or of a checkpoint, as the options say."""
    if request.arch is None and request.checkpoint.is_dir() and find_index(request.checkpoint) is None:
        for name in _CHECKPOINT_OPTIONS:
            if getattr(request, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no meaning for a record; leave it out, or give --arch too"
                )
        recorded = open_network(request.checkpoint, trust=request.trust)
        return Subject(
            recorded.model, recorded.input_shape, recorded.provenance.mean, recorded.provenance.std, loaded=None
        )
    network = load_network(
        request.checkpoint,
        arch=request.arch,
        key=request.key,
        options=parse_options(request.arch_option, flag="--arch-option"),
        num_classes=request.num_classes,
        input_shape=None if request.input_size is None else parse_shape(request.input_size),
        trust=request.trust,
        strict=request.strict,
    )
    mean, std = normalization(
        parse_numbers(request.mean, flag="--mean"), parse_numbers(request.std, flag="--std"), network.input_shape[0]
    )
    return Subject(network.model, network.input_shape, mean, std, network)


def require_place(repair: Path, loaded: LoadedNetwork | None) -> None:
    """A place that cannot be written to is told before the work."""
    if loaded is not None:
        loaded.require_place(repair)
    else:
        require_weights_suffix(repair)
        weights_to_write(repair)


def write_repaired(model: nn.Module, loaded: LoadedNetwork | None, path: Path) -> None:
    """Write the network in the form that it came in, or a record's as bare weights, and say so."""
    if loaded is None:
        save_weights(model.state_dict(), path, marked=True)
    else:
        loaded.save(model, path)
    say(f"wrote the repaired checkpoint to {path}")


def parse_shape(text: str) -> tuple[int, int, int]:
    """``C,H,W`` as three positive numbers.

    Raises:
        ConfigError: If it is anything else.
    """
    try:
        channels, height, width = (int(part) for part in text.split(","))
        if min(channels, height, width) < 1:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--input-size: expected C,H,W such as 3,32,32; found {text!r}") from None
    return channels, height, width
