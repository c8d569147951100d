"""The port is typed: mypy refuses calls that no adapter answers, and adapters that lack something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "clp_plugin").is_dir(), reason="mypy is given the checkout's source"),
]

CONFIG = """
[mypy]
strict = true
disable_error_code = type-abstract
mypy_path = {root}
explicit_package_bases = true

[mypy-clp_plugin.*]
follow_imports = silent

[mypy-torch.*,numpy.*,pydantic.*,yaml.*]
follow_imports = skip
ignore_missing_imports = true
"""

# A line that ends in `# refused: CODE` must be refused with that code, and no other line may be.
CODE = """
from collections.abc import Iterator, Mapping
from pathlib import Path

from clp_plugin.records.adapter import ReadsRecords, RunsDefenses, WritesResults
from clp_plugin.records.exchange import RecordListing, RunRequest, ToolboxResult
from clp_plugin.records.adapter import require
from clp_plugin.records.opening import find_adapter
from clp_plugin.registry import Catalogue
from clp_plugin.types import Record


class Reader:
    def sniff(self, path: Path) -> bool:
        return True

    def open(self, path: Path, *, trust: bool = False) -> Record:
        raise NotImplementedError

    def records(self, root: Path) -> Iterator[RecordListing]:
        yield RecordListing(root, "all there is", complete=True)


class CannotList:
    def sniff(self, path: Path) -> bool:
        return True

    def open(self, path: Path, *, trust: bool = False) -> Record:
        raise NotImplementedError


class Driver(Reader, RunsDefenses):
    def run_defense(self, record: Path, method: str, request: RunRequest) -> ToolboxResult:
        raise NotImplementedError


class Mistaken(Reader, RunsDefenses):
    def run_defense(self, record: Path, method: str, request: RunRequest) -> str:  # refused: override
        return ""


def sound(path: Path, catalogue: Catalogue) -> ToolboxResult:
    reader: ReadsRecords = Reader()
    adapter = find_adapter(path, toolbox=None, catalogue=catalogue)
    record: Record = adapter.open(path, trust=reader.sniff(path))
    if isinstance(adapter, WritesResults):
        adapter.export(path, "clp", record=record, model=record.model, final={"acc": 0.5})
    return require(adapter, RunsDefenses, toolbox="mine").run_defense(path, "anp", RunRequest())


def wrong(path: Path, adapter: ReadsRecords, catalogue: Catalogue) -> None:
    find_adapter(path, toolbox=None, catalogue=catalogue).opne(path)  # refused: attr-defined
    number: int = find_adapter(path, toolbox=None, catalogue=catalogue).open(path)  # refused: assignment
    adapter.run_defense(path, "anp", RunRequest())  # refused: attr-defined
    require(adapter, RunsDefenses, toolbox="mine").run_defense(path, "anp")  # refused: call-arg
    if isinstance(adapter, WritesResults):
        adapter.export(path, "clp", final={"acc": 0.5})  # refused: call-arg
        folder: str = adapter.result_folder(path, "clp", {})  # refused: assignment
    incomplete: ReadsRecords = CannotList()  # refused: assignment
    Driver()  # refused: abstract
"""


def test_wrong_calls_and_incomplete_adapters_are_refused_and_sound_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(CONFIG.format(root=ROOT))
    (tmp_path / "outsider.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "outsider.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    found = {int(line): code for line, code in re.findall(r"outsider\.py:(\d+): error: .*\[([\w-]+)\]", said.stdout)}
    expected = {
        number: line.partition("# refused: ")[2]
        for number, line in enumerate(CODE.splitlines(), 1)
        if "# refused: " in line
    }
    assert found == expected, said.stdout + said.stderr
