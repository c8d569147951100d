"""A made-up toolbox, and a registry that adds it: what is asked of it, it remembers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fake_records import fake_record

from clp_plugin.adapters.backdoorbench.export import export_defense
from clp_plugin.errors import RecordError, ToolboxError
from clp_plugin.masking.apply import masked
from clp_plugin.records.exchange import CheckoutState, RecordListing, RunRequest, ScriptState, ToolboxResult
from clp_plugin.types import Mask, Record

REPORTED = {"acc": 0.5}


class FakeToolbox:
    """Records are folders with a file ``fake``; its only defense silences one channel."""

    looks_for = "a file named fake"
    root: Path
    asked: dict[str, Any]

    def sniff(self, path: Path) -> bool:
        return (path / "fake").is_file()

    def open(self, path: Path, *, trust: bool = False) -> Record:
        record = fake_record()
        return replace(record, provenance=replace(record.provenance, path=str(path), toolbox="fakebench"))

    def records(self, root: Path) -> Iterator[RecordListing]:
        yield from ()

    def locate(self, name: str, *, root: Path | None = None) -> Path:
        path = (root or self.root) / "record" / name
        if not path.is_dir():
            raise RecordError(f"no record {name!r} in {path.parent}")
        return path

    def install(self, destination: Path, *, source: str | None, ref: str | None) -> Path:
        self.asked.update(source=source, ref=ref)
        destination.mkdir(parents=True)
        return destination

    def check(self, *, root: Path | None = None) -> CheckoutState:
        scripts = [
            ScriptState("defense", "clp"),
            ScriptState("attack", "badnet", "no module cv2", "opencv-python-headless"),
        ]
        return CheckoutState(root or self.root, "--root", "abc123", scripts, registered=False)

    def register(self, *, root: Path | None = None, remove: bool = False) -> Sequence[Path]:
        self.asked.update(remove=remove)
        return [self.root / "defense" / "clp_plugin.py"]

    def result_folder(self, record: Path, method: str, options: Mapping[str, object]) -> Path:
        return record / "defense" / "clp_plugin"

    export = staticmethod(export_defense)

    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        self.asked.update(method=method, request=request)
        request.report("epoch 1")
        if "do" in request.options:
            raise ToolboxError("anp.py failed (exit status 1): IndexError")
        result = self.read_defense(record, method)
        return result if request.destination is None else replace(result, folder=request.destination)

    def read_defense(self, record: Path, method: str) -> ToolboxResult:
        channels = torch.zeros(6, dtype=torch.bool).numpy()
        channels[2] = True
        model = masked(copy.deepcopy(self.open(record).model), Mask({"bn1": channels}))
        folder = record / "defense" / method
        folder.mkdir(parents=True, exist_ok=True)
        return ToolboxResult(
            model=model, folder=folder, reported=REPORTED, seconds=7.0, budget="benign:5 %", oracle="looks at test images",
            options={"epochs": 3}, log=folder / "x.log", commit="abc123",
        )  # fmt: skip

    def attack_options(self, given: Mapping[str, object]) -> dict[str, object]:
        return {f"their_{key}": value for key, value in given.items()}

    @contextlib.contextmanager
    def attacked(self, name: str, method: str, request: RunRequest) -> Iterator[Path]:
        self.asked.update(method=method, request=request)
        path = self.root / "record" / name
        path.mkdir(parents=True)
        (path / "fake").touch()
        yield path


class OnlyReads:
    """An adapter without a toolbox to drive."""

    def sniff(self, path: Path) -> bool:
        return False

    def open(self, path: Path, *, trust: bool = False) -> Record:
        return fake_record()

    def records(self, root: Path) -> Iterator[RecordListing]:
        yield from ()


def fake_registry(folder: Path) -> Path:
    """A file that adds the toolbox ``fakebench``, whose checkout with the record ``eins`` lies beside it, and ``reader``."""
    FakeToolbox.root, FakeToolbox.asked = folder / "checkout", {}
    record = folder / "checkout" / "record" / "eins"
    record.mkdir(parents=True)
    (record / "fake").touch()
    file = folder / "registry.yaml"
    file.write_text(
        "toolboxes:\n"
        f"  fakebench: {{object: '{__name__}:FakeToolbox', summary: made up}}\n"
        f"  reader: {{object: '{__name__}:OnlyReads', summary: only reads}}\n"
    )
    return file
