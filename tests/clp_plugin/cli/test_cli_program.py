"""The program itself: its start, its exit codes, and what it says when something goes wrong."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import bench

from clp_plugin.cli.app import app
from clp_plugin.cli.console import run
from clp_plugin.errors import ClpError
from clp_plugin.store.outcomes import load_outcome


def program(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clp_plugin", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_is_quick_and_does_not_import_torch() -> None:
    code = (
        "import sys; from clp_plugin.cli.app import app; from clp_plugin.cli.console import run; "
        "codes = [run(app, ['--help']), run(app, ['defend', '--help']), run(app, ['list', 'defenses']), "
        "run(app, ['list', 'toolboxes'])]; "
        "sys.exit(repr((codes, sorted({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "clp_plugin", "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # 0.3 s on a quiet machine
    for command in ("demo", "list", "attack", "scan", "defend", "correlate", "sweep"):
        assert command in done.stdout
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "([0, 0, 0, 0], [])"


def test_a_mistake_is_one_line_and_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    command = ["list", "records", "--root", tmp_path / "no"]
    plain = program(*command)
    assert plain.returncode == 2
    assert plain.stdout == ""
    assert plain.stderr.count("\n") == 1
    assert plain.stderr.startswith("error: cannot list records")
    debug = program("--debug", *command)
    assert debug.returncode not in (0, 2)
    assert "Traceback" in debug.stderr
    assert "RecordError: cannot list records" in debug.stderr


def test_debug_raises_the_error_itself(tmp_path: Path) -> None:
    with pytest.raises(ClpError, match="there is no record"):
        run(app, ["defend", "--record", str(tmp_path / "no"), "--debug"])


@pytest.mark.parametrize("argv", [["frobnicate"], ["defend"], ["defend", "--record"], ["list", "nope"], ["scan"]])
def test_wrong_usage_is_exit_code_2_and_says_what_is_wrong(argv: list[str]) -> None:
    result = bench(*argv)
    assert result.code == 2
    assert result.out == ""
    assert "Error" in result.err
    assert "Traceback" not in result.err


def test_unexpected_error_is_exit_code_1_and_points_to_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("clp_plugin.cli.commands.listing.list_folder", fail)
    result = bench("list", "records")
    assert result.code == 1
    assert "internal error: ZeroDivisionError: boom" in result.err
    assert "--debug" in result.err


def test_stopping_by_hand_is_exit_code_130_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clp_plugin.cli.commands.listing.list_folder", stop)
    result = bench("list", "records")
    assert result.code == 130
    assert "when the same command is given again" in result.err


@pytest.mark.slow
def test_command_as_typed_is_in_the_outcome(record: Path, tmp_path: Path) -> None:
    done = program("defend", "--record", record, "--out", tmp_path / "a b", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "clp"
    command = load_outcome(tmp_path / "a b" / "outcome.json").command
    assert command.startswith("bench defend --record")
    assert f"'{tmp_path / 'a b'}'" in command
