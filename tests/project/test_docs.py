"""The pages that scripts rely on say what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import CORRELATION, DEFEND, LAYER, METRICS

from clp_plugin.cli.app import app
from clp_plugin.evidence.sweep import SweepRow
from clp_plugin.records.exchange import ToolboxPresence
from clp_plugin.registry import Entry
from clp_plugin.store.outcomes import Outcome, StoredMetrics
from clp_plugin.types import Provenance

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs the checkout")


def words(text: str) -> set[str]:
    """Everything in backticks, split at commas and spaces."""
    return {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.split(r"[,\s]+", quoted)}


def section(command: str) -> str:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    found = re.search(rf"^## `bench {command}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section on bench {command}"
    return found[1]


def options(command: Any) -> set[str]:
    """Of a command, or of all commands of a group."""
    own = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


APP = typer.main.get_command(app)
COMMANDS = APP.commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_documented(name: str) -> None:
    shared = (DOCS / "cli.md").read_text(encoding="utf-8").partition("## Options that several")[2].partition("\n## ")[0]
    known = words(shared) | words(section(name)) | set(re.findall(r"--[\w-]+", section(name)))
    assert options(COMMANDS[name]) - {"--help"} <= known
    assert len(options(COMMANDS[name])) > 2


def test_no_option_is_documented_that_does_not_exist() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    of_toolboxes = {"--defense", "--clp_u", "--mark_width_offset", "--mark_height_offset"}  # of TrojanZoo's scripts
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= options(APP) | {"--debug"} | of_toolboxes


def test_every_key_of_json_output_is_documented() -> None:
    assert set(METRICS) <= words((DOCS / "cli.md").read_text(encoding="utf-8"))
    assert {"u", "seconds", "layers", "verified", *LAYER} <= words(section("scan"))
    assert set(DEFEND) <= words(section("defend"))
    assert {"layers", "pooled", *CORRELATION} <= words(section("correlate"))
    assert {"rows", *(f.name for f in dataclasses.fields(SweepRow))} <= words(section("sweep"))
    assert {"record", "seconds"} <= words(section("attack"))
    assert {"rows", "pooled", "seconds_total"} <= words(section("demo"))
    entry = {name for name, field in Entry.model_fields.items() if not field.exclude} | {"origin"}
    presence = {field.name for field in dataclasses.fields(ToolboxPresence)} | {"problem"}
    assert {*entry, *presence, "name", "records", "path", "complete"} <= words(section("list"))


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("", set(Outcome.model_fields)),
        ("## `before` and `after`", set(StoredMetrics.model_fields)),
        ("## `provenance`", {f.name for f in dataclasses.fields(Provenance)} | {"target"}),
    ],
)
def test_every_field_of_an_outcome_is_documented_and_no_other(part: str, fields: set[str]) -> None:
    text = (DOCS / "outcome-schema.md").read_text(encoding="utf-8")
    table = text.partition(part)[2].partition("\n## ")[0] if part else text.partition("\n## ")[0]
    documented = {
        name for line in table.splitlines() if line.startswith("| `") for name in words(line.split("|")[1])
    }  # fmt: skip
    assert documented == fields
