"""BackdoorBox's own repairs on its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.networks.fitting import fit_state_dict
from clp_plugin.records.exchange import RunRequest, ToolboxResult
from clp_plugin.types import Record

from ..driving.checkout import Checkout, commit_of
from ..driving.repairs import OwnRepairs
from .toolbox_facts import DEFENSES, LAUNCHER

# They drop a last batch that is not whole, and so all images where these are fewer than a batch.
_WHOLE_BATCHES = ("FineTuning", "Pruning")


class Masked(nn.Module):
    """A part of a network whose channels are silenced by a mask, as BackdoorBox's pruning leaves it."""

    mask: Tensor

    def __init__(self, base: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) * self.mask
        return out


def _rebuilt(model: nn.Module, content: Mapping[str, Any], file: Path) -> nn.Module:
    if not {"weights", "masks"} <= content.keys():
        raise RecordError(f"{file}: expected weights and masks, found {', '.join(content) or 'nothing'}")
    fit_state_dict(model, content["weights"], where=str(file))
    for name, mask in content["masks"].items():
        setattr(model, name, Masked(getattr(model, name), mask))
    return model


REPAIRS = OwnRepairs("BackdoorBox", LAUNCHER, "core/defenses/{}.py".format, DEFENSES, _rebuilt)


def run_defense(found: Checkout, record: Record, method: str, request: RunRequest) -> ToolboxResult:
    """Run one of them on a record of the toolbox, as :meth:`OwnRepairs.run` says.

    Raises:
        ConfigError: If the defense, an option or the record cannot be used, or a result is there already.
        ToolboxError: If it fails, or leaves nothing that can be used.
    """
    options = REPAIRS.options(method, request.options)
    count, batch = len(record.benign), int(options["batch_size"])
    if method in _WHOLE_BATCHES and 0 < count < batch:
        raise ConfigError(
            f"{method} drops a batch that is not whole, and so all {count} benign images of {record.folder} with a batch_size "
            f"of {batch}: it would see nothing; give --option batch_size={count} or less"
        )
    return REPAIRS.run(
        record, method, options, request, found=found, surroundings=found.root, version=commit_of(found.root)
    )
