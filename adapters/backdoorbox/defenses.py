"""BackdoorBox's own repairs on its records: in a process of their own, on the record's benign images."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clp_plugin.errors import CheckpointError, ConfigError, RecordError, ToolboxError, unknown_name
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.files.locks import claimed
from clp_plugin.files.reading import read_json
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.networks.fitting import fit_state_dict
from clp_plugin.records.exchange import RunRequest, ToolboxResult
from clp_plugin.types import Record

from ..driving.checkout import Checkout, commit_of
from ..driving.process import Script, run_script
from ..driving.results import RUN_LOG, log_file, require_free
from ..driving.workspace import move_in, workspace
from .toolbox_facts import DEFENSES, LAUNCHER

RESULT, REPORTED, SETTINGS = "repaired.pt", "reported.json", "settings.json"
# They drop a last batch that is not whole, and so all images where these are fewer than a batch.
_WHOLE_BATCHES = ("FineTuning", "Pruning")


def run_defense(found: Checkout, record: Record, method: str, request: RunRequest) -> ToolboxResult:
    """Run one of them; its folder of results appears when it has ended well, whole.

    Args:
        found: The checkout.
        record: A record of the toolbox, as it was opened.
        method: A key of ``DEFENSES``.
        request: How it is to run.

    Raises:
        ConfigError: If the defense, an option or the record cannot be used, or a result is there already.
        ToolboxError: If it fails, or leaves nothing that can be used.
    """
    options = _options(method, request.options)
    _require_images(record, method, options)
    target = request.destination or record.folder / "defense" / method
    require_free(target, force=request.force)
    log = log_file(record.folder, method)
    with claimed(target, wait=False), workspace(found.root, own=("result",)) as place:
        require_free(target, force=request.force)  # another run may have ended since
        request.report(f"BackdoorBox at {found.root} (found by {found.found_by})")
        settings = {"record": str(record.folder.absolute()), "method": method, "options": options}
        write_json_atomically(place / SETTINGS, {**settings, "seed": request.seed, "device": request.device})
        script = Script(f"core/defenses/{method}.py", [SETTINGS], LAUNCHER, request.trust)
        seconds = run_script(script, place, log, report=request.report, time_limit=request.time_limit)
        produced = place / "result"
        try:
            result = _read(produced, record, trust=request.trust)
        except (CheckpointError, RecordError) as error:
            raise ToolboxError(f"{script.path} ended well, but left nothing that can be used: {error}") from error
        shutil.move(log, produced / RUN_LOG)
        move_in(produced, target)
    with contextlib.suppress(OSError):  # logs of other runs that failed stay
        log.parent.rmdir()
    model, reported = result
    return ToolboxResult(
        model, target, reported, seconds, f"benign:{len(record.benign)}", "", options, log=target / RUN_LOG,
        commit=commit_of(found.root),
    )  # fmt: skip


def read_defense(record: Record, method: str) -> ToolboxResult:
    """Read a result that is there already. Its options are not stored with it, so they are not known.

    Raises:
        RecordError: If there is none, or it cannot be used.
    """
    folder = record.folder / "defense" / method
    if not (folder / RESULT).is_file():
        there = sorted(item.parent.name for item in folder.parent.glob(f"[!.]*/{RESULT}"))
        raise RecordError(f"{folder}: no {RESULT}; results there are: {', '.join(there) or 'none'}")
    model, reported = _read(folder, record, trust=False)
    return ToolboxResult(model, folder, reported, 0.0, f"benign:{len(record.benign)}", "", {})


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


def _options(method: str, given: Mapping[str, object]) -> dict[str, Any]:
    if method not in DEFENSES:
        raise ConfigError(f"backdoorbox: {unknown_name('defense', method, DEFENSES)}")
    for name in given:
        if name not in DEFENSES[method]:
            raise ConfigError(f"BackdoorBox's {method}: {unknown_name('option', name, DEFENSES[method])}")
    return {**DEFENSES[method], **given}


def _require_images(record: Record, method: str, options: Mapping[str, Any]) -> None:
    count, batch = len(record.benign), int(options["batch_size"])
    if not count:
        raise ConfigError(f"{method} needs benign images, and {record.folder} holds none; make it with --n-benign")
    if method in _WHOLE_BATCHES and count < batch:
        raise ConfigError(
            f"{method} drops a batch that is not whole, and so all {count} benign images of {record.folder} with a batch_size "
            f"of {batch}: it would see nothing; give --option batch_size={count} or less"
        )


def _read(folder: Path, record: Record, *, trust: bool) -> tuple[nn.Module, dict[str, float]]:
    """The repaired network, in eval mode on the CPU, and the toolbox's own numbers."""
    file = folder / RESULT
    content = read_pickle_checkpoint(file, trust=trust)
    if not isinstance(content, Mapping) or not {"weights", "masks"} <= content.keys():
        raise RecordError(f"{file}: expected weights and masks, found {type(content).__name__}")
    model = record.model
    fit_state_dict(model, content["weights"], where=str(file))
    for name, mask in content["masks"].items():
        setattr(model, name, Masked(getattr(model, name), mask))
    reported = read_json(folder / REPORTED, raises=RecordError)
    if not isinstance(reported, Mapping):
        raise RecordError(f"{folder / REPORTED}: expected numbers by name")
    return model.eval(), {str(name): float(value) for name, value in reported.items()}
