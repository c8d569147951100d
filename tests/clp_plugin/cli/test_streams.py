"""What is printed arrives as text on any terminal and in any pipe, and a closed one is nobody's mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import bench, refused

from clp_plugin.cli.console import emit_json, guarded, say, show_table
from clp_plugin.errors import ConfigError
from clp_plugin.files.option_values import parse_options
from clp_plugin.reports.tables import to_csv, to_markdown

BENCH = [sys.executable, "-m", "clp_plugin"]
HOSTILE = "\x1b[2J[/red][bold]a|b"


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in which ``"$@"`` is ``bench``; the package under test is the one that runs here."""
    path = os.pathsep.join(filter(None, sys.path))
    command = ["bash", "-c", f"set -o pipefail; {script}", "bash", *BENCH]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path, **environment}
    )


def broken_record(path: Path) -> None:
    """A folder that looks like a record of the built-in bench, and is none."""
    path.mkdir(parents=True)
    (path / "record.json").write_text("{}")
    (path / "model.safetensors").touch()


def test_tables_and_lines_show_markup_and_controls_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(HOSTILE, [HOSTILE], [[HOSTILE]])
    say(HOSTILE)
    told = capsys.readouterr()
    assert told.out.count("\\x1b[2J[/red][bold]a|b") == 3
    assert told.err == "\\x1b[2J[/red][bold]a|b\n"


def test_a_folder_whose_name_is_markup_is_a_line_of_the_listing(tmp_path: Path) -> None:
    broken_record(tmp_path / "[" / "red]\x1b[1m")
    listed = bench("list", "records", "--root", tmp_path / "[")
    assert listed.code == 0
    assert "[/red]\\x1b[1m" in listed.out


def test_text_in_a_spreadsheet_is_no_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    to_csv([{"record": "=cmd()", "attack": "-x", "der": -0.5}], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "record,attack,der\n'=cmd(),'-x,-0.5\n"


def test_a_cell_of_a_markdown_table_stays_one_cell() -> None:
    last = to_markdown([{"method": "a|b\n| c | <b>"}]).splitlines()
    assert len(last) == 3
    assert last[-1] == "| a\\|b \\| c \\| &lt;b> |"


def test_a_reader_that_has_seen_enough_ends_nothing_with_an_error() -> None:
    done = shell('"$@" list defenses --json | head -c 1')
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    assert shell(f'"$@" list defenses {closed}').returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_told() -> None:
    done = shell('"$@" list defenses > /dev/full')
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


def test_an_ascii_terminal_gets_whole_json_and_readable_text(tmp_path: Path) -> None:
    broken_record(tmp_path / "größe")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = shell(f'"$@" list records --root "{tmp_path}" --json', **ascii_only)
    assert done.returncode == 0
    assert any("größe" in record["path"] for record in json.loads(done.stdout)["records"])
    assert shell(f'"$@" list records --root "{tmp_path}"', **ascii_only).returncode == 0


def test_names_that_are_no_text_can_be_told(capfd: pytest.CaptureFixture[str]) -> None:
    emit_json({"path": "a\udcff"})
    assert json.loads(capfd.readouterr().out) == {"path": "a\udcff"}
    done = shell('"$@" scan "$(printf "no\\377.pth")"')
    assert done.returncode == 2
    assert "no\\udcff.pth" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["--record", "x", "--out", ""], ["--record", ""], ["--record", "x", "--out="], ["--record", "x", "--device", ""]],
)
def test_an_option_without_a_value_is_a_mistake(words: list[str]) -> None:
    assert "expected a value, found nothing" in refused("defend", *words)


@pytest.mark.parametrize("device", ["mps", "cuda:99", "xla", "meta", "nowhere", "vulkan"])
def test_a_device_that_is_not_here_is_a_mistake(device: str) -> None:
    from clp_plugin.networks.devices import pick_device

    with pytest.raises(ConfigError, match=r"cannot be used here: .*; try --device cpu"):
        pick_device(device)


@pytest.mark.parametrize("seed", ["-1", "12345678901234567890", "1.5"])
@pytest.mark.parametrize(
    "command",
    [
        ["defend", "--record", "x"],
        ["demo", "--out", "x"],
        ["attack", "--out", "x"],
        ["record", "--checkpoint", "x", "--images", "x", "--target", "0", "--out", "x"],
    ],
)
def test_a_seed_that_no_generator_takes_is_a_mistake(command: list[str], seed: str) -> None:
    said: Any = bench(*command, "--seed", seed)
    assert said.code == 2
    assert "--seed" in said.err


@pytest.mark.parametrize("seeds", ["0:99999999999999999999", "3,99999999999", "-1", "-2:3", "3:3", "0:x"])
def test_seeds_that_no_generator_takes_are_a_mistake(seeds: str) -> None:
    assert "--seeds: expected whole numbers" in refused("leaderboard", "run", "--attack", "badnets", "--seeds", seeds)


LONG = "x" * 300  # longer than any file system's names


@pytest.mark.parametrize(
    "words",
    [
        ["defend", "--record", LONG],
        ["scan", LONG],
        ["scan", f"{LONG}/net.pth"],
        ["list", "records", "--root", LONG],
        ["demo", "--out", LONG],
        ["compare", "--record", LONG, "--out", "x"],
        ["toolbox", "check", "backdoorbench", "--root", LONG],
        ["list", "attacks", "--registry", LONG],
    ],
)
def test_a_name_that_no_file_system_takes_is_a_mistake(words: list[str]) -> None:
    said = refused(*words)
    assert LONG in said
    assert "File name too long" in said


def test_a_message_about_a_long_name_stays_short() -> None:
    assert len(refused("defend", "--record", "x" * 5000)) < 1200


def test_an_error_of_the_operating_system_that_names_no_place_is_a_fault_of_ours() -> None:
    def work() -> None:
        raise OSError(5, "Input/output error")

    assert guarded(work, debug=False) == 1


def test_a_value_that_only_looks_like_a_date_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"--option"):
        parse_options(["lr=2020-13-45"])
