"""A toolbox's own repairs on its records: each in a process of its own, on the record's benign images.

The parent asks by a file of settings and the child leaves a folder; both sides of that are here, and nothing of any toolbox.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from clp_plugin.errors import CheckpointError, ConfigError, RecordError, ToolboxError, unknown_name
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.files.locks import claimed
from clp_plugin.files.reading import read_json
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.networks.fitting import fit_state_dict
from clp_plugin.records.exchange import RunRequest, ToolboxResult
from clp_plugin.types import Record

from .checkout import Checkout
from .process import Script, run_script
from .results import RUN_LOG, log_file, require_free
from .workspace import move_in, workspace

RESULT, REPORTED, SETTINGS = "repaired.pt", "reported.json", "settings.json"
PRODUCED = Path("result")  # below the child's current folder


@dataclass(frozen=True)
class Asked:
    """What a child is asked for.

    Attributes:
        record: Absolute path of the record's folder.
        method: The toolbox's name of the repair.
        options: All of the repair's options.
        seed: Seed of the repair.
        device: Name of the device, such as ``"cpu"``, ``"cuda"``.
    """

    record: str
    method: str
    options: Mapping[str, Any]
    seed: int
    device: str


def refitted(model: nn.Module, weights: Mapping[str, Any], file: Path) -> nn.Module:
    """The network with other weights.

    Raises:
        CheckpointError: If they do not fit; names the file.
    """
    fit_state_dict(model, weights, where=str(file))
    return model


@dataclass(frozen=True)
class OwnRepairs:
    """The repairs of a toolbox that run on its records.

    Attributes:
        toolbox: The toolbox's name, for messages.
        launcher: Module of the child process.
        script: Gives the path of a repair's module in the toolbox, for messages.
        methods: Options of each repair, and their values where none is given.
        rebuild: Returns the repaired network, made from the record's by what the child stored; the last argument names the
            file of that.
        oracles: How test images take part in a repair's choices, for those in which they do.
    """

    toolbox: str
    launcher: str
    script: Callable[[str], str]
    methods: Mapping[str, Mapping[str, Any]]
    rebuild: Callable[[nn.Module, Mapping[str, Any], Path], nn.Module] = refitted
    oracles: Mapping[str, str] = field(default_factory=dict)

    def options(self, method: str, given: Mapping[str, object]) -> dict[str, Any]:
        """All options of a repair.

        Raises:
            ConfigError: If the repair or an option is unknown.
        """
        if method not in self.methods:
            raise ConfigError(f"{self.toolbox}: {unknown_name('defense', method, self.methods)}")
        for name in given:
            if name not in self.methods[method]:
                raise ConfigError(f"{self.toolbox}'s {method}: {unknown_name('option', name, self.methods[method])}")
        return {**self.methods[method], **given}

    def run(
        self,
        record: Record,
        method: str,
        options: Mapping[str, Any],
        request: RunRequest,
        *,
        found: Checkout,
        surroundings: Path | None,
        version: str,
    ) -> ToolboxResult:
        """Run one of them; its folder of results appears when it has ended well, whole.

        Args:
            record: A record of the toolbox, as it was opened.
            method: A key of ``methods``.
            options: All of its options.
            request: How it is to run.
            found: Where the toolbox is.
            surroundings: The folder whose content the child finds in its current folder, or None.
            version: The toolbox's commit or release.

        Raises:
            ConfigError: If the record holds no benign images, or a result is there already.
            ToolboxError: If it fails, or leaves nothing that can be used.
        """
        if not len(record.benign):
            raise ConfigError(f"{method} needs benign images, and {record.folder} holds none; make it with --n-benign")
        target = request.destination or record.folder / "defense" / method
        require_free(target, force=request.force)
        log = log_file(record.folder, method)
        with claimed(target, wait=False), workspace(surroundings, own=(str(PRODUCED),)) as place:
            require_free(target, force=request.force)  # another run may have ended since
            request.report(f"{self.toolbox} at {found.root} (found by {found.found_by})")
            asked = Asked(str(record.folder.absolute()), method, options, request.seed, request.device)
            write_json_atomically(place / SETTINGS, asdict(asked))
            script = Script(self.script(method), [SETTINGS], self.launcher, request.trust)
            seconds = run_script(script, place, log, report=request.report, time_limit=request.time_limit)
            produced = place / PRODUCED
            try:
                left = self._left(produced, record, trust=request.trust)
            except (CheckpointError, RecordError) as error:
                raise ToolboxError(f"{script.path} ended well, but left nothing that can be used: {error}") from error
            shutil.move(log, produced / RUN_LOG)
            move_in(produced, target)
        with contextlib.suppress(OSError):  # logs of other runs that failed stay
            log.parent.rmdir()
        return replace(
            self._result(record, method, target, left), seconds=seconds, options=options,
            log=target / RUN_LOG, commit=version,
        )  # fmt: skip

    def read(self, record: Record, method: str) -> ToolboxResult:
        """Read a result that is there already. Its options are not stored with it, so they are not known.

        Raises:
            RecordError: If there is none, or it cannot be used.
        """
        folder = record.folder / "defense" / method
        if not (folder / RESULT).is_file():
            there = sorted(item.parent.name for item in folder.parent.glob(f"[!.]*/{RESULT}"))
            raise RecordError(f"{folder}: no {RESULT}; results there are: {', '.join(there) or 'none'}")
        return self._result(record, method, folder, self._left(folder, record, trust=False))

    def _result(
        self, record: Record, method: str, folder: Path, left: tuple[nn.Module, dict[str, float]]
    ) -> ToolboxResult:
        model, reported = left
        return ToolboxResult(
            model, folder, reported, 0.0, f"benign:{len(record.benign)}", self.oracles.get(method, ""), {}
        )

    def _left(self, folder: Path, record: Record, *, trust: bool) -> tuple[nn.Module, dict[str, float]]:
        """The repaired network, in eval mode on the CPU, and the toolbox's own numbers."""
        file = folder / RESULT
        content = read_pickle_checkpoint(file, trust=trust)
        if not isinstance(content, Mapping):
            raise RecordError(f"{file}: expected weights by name, found {type(content).__name__}")
        reported = read_json(folder / REPORTED, raises=RecordError)
        if not isinstance(reported, Mapping):
            raise RecordError(f"{folder / REPORTED}: expected numbers by name")
        numbers = {str(name): float(value) for name, value in reported.items()}
        return self.rebuild(record.model, content, file).eval(), numbers


def read_asked(file: Path) -> Asked:
    """What the parent asks for; in the child."""
    return Asked(**json.loads(file.read_text(encoding="utf-8")))


def make_masks_weights(network: nn.Module) -> None:
    """Make the masks that torch's pruning leaves part of the weights, so that these have their own names again."""
    for module in network.modules():
        if hasattr(module, "weight_mask"):
            prune.remove(module, "weight")


def leave(content: Mapping[str, Any], reported: Mapping[str, float]) -> None:
    """Leave what a repair came to, in the child.

    Args:
        content: What :attr:`OwnRepairs.rebuild` takes; tensors are on the CPU.
        reported: The toolbox's own numbers, in [0, 1].
    """
    (PRODUCED / REPORTED).write_text(json.dumps(reported), encoding="utf-8")
    torch.save(content, PRODUCED / RESULT)
