"""Files of text: only ordinary ones are opened, and none costs more than its size warrants."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clp_plugin.adapters.builtin.record_files import load_arrays, read_description
from clp_plugin.adapters.image_sets.cifar_batches import TEST_FILES, read_batches
from clp_plugin.adapters.image_sets.image_files import decode
from clp_plugin.config import CONFIG_VARIABLE, load_settings
from clp_plugin.errors import ClpError, RecordError
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.files.hashing import sha256
from clp_plugin.files.reading import parse_json, parse_yaml, read_bytes, read_csv, read_json, read_text, read_yaml
from clp_plugin.masking.apply import load_mask
from clp_plugin.registry import load_catalogue
from clp_plugin.store.outcomes import load_outcome, load_outcomes

KINDS = ["pipe", "socket", "device", "link to a device", "folder"]


@pytest.fixture
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Something that is no ordinary file."""
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    path = tmp_path / "odd"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("odd")
            yield path
            return
    elif request.param == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path = Path("/dev/zero")
    yield path


def as_name(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """``read`` of a folder in which the odd thing has a name."""

    def call(odd: Path) -> object:
        folder = odd.parent / "place" if odd.parent != Path("/dev") else Path.cwd() / "place"
        folder.mkdir()
        (folder / name).symlink_to(odd)
        return read(folder)

    return call


def configured(odd: Path) -> object:
    before = os.environ.get(CONFIG_VARIABLE)
    os.environ[CONFIG_VARIABLE] = str(odd)
    try:
        return load_settings()
    finally:
        os.environ.pop(CONFIG_VARIABLE)
        if before is not None:
            os.environ[CONFIG_VARIABLE] = before


@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("odd", KINDS, indirect=True)
@pytest.mark.parametrize(
    "read",
    [
        load_checkpoint,
        as_name("model.safetensors", lambda folder: load_checkpoint(folder / "model.safetensors")),
        load_catalogue,
        configured,
        load_outcome,
        load_mask,
        sha256,
        load_arrays,
        as_name("record.json", read_description),
        as_name("test_batch", lambda folder: read_batches(folder, TEST_FILES)),
        lambda odd: decode(odd, (3, 8, 8)),
    ],
)
def test_what_is_no_ordinary_file_is_refused_before_it_is_opened(odd: Path, read: Callable[[Path], object]) -> None:
    start = time.monotonic()
    with pytest.raises(ClpError):
        read(odd)
    assert time.monotonic() - start < 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_outcomes_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    assert load_outcomes(tmp_path) == []


def test_every_failure_names_the_file_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\xff")
    for read, match in (
        (lambda: read_text(tmp_path / "x", raises=RecordError), r"x is no UTF-8 text: .* at byte 1"),
        (lambda: read_bytes(tmp_path / "x", raises=RecordError, limit=1), r"x is larger than"),
        (lambda: read_bytes(tmp_path / "y", raises=RecordError), r"cannot read .*y: No such file"),
        (lambda: read_bytes(tmp_path / ("n" * 300), raises=RecordError), r"cannot read .*: File name too long"),
        (lambda: read_bytes(tmp_path / "\0", raises=RecordError), r"cannot read .*null"),
        (lambda: read_bytes(tmp_path, raises=RecordError, limit=1), r"is a folder; expected an ordinary file"),
    ):
        with pytest.raises(RecordError, match=match):
            read()


def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    (tmp_path / "x").chmod(0)
    if os.access(tmp_path / "x", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(RecordError, match=r"cannot read .*x: Permission denied"):
        read_json(tmp_path / "x", raises=RecordError)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("1" * 5_000, "whole number of 5000 digits"),
        ("[1" + "0" * 30 + "]", "whole number of 31 digits"),
        (str(2**64), "whole number"),
        ('"\\ud800"', "half a character"),
        ("", "Expecting value"),
    ],
)
def test_json_that_costs_or_breaks_more_than_it_should_is_refused(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_json(text)


def test_json_is_otherwise_what_it_says() -> None:
    assert parse_json('{"a": [18446744073709551615, -9223372036854775808, 1e3, "\\ud83d\\ude00"]}') == {
        "a": [2**64 - 1, -(2**63), 1000.0, "\N{GRINNING FACE}"]
    }


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("unique_keys", [False, True])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (LAUGHS, "aliases make too much"),
        (MERGES, "aliases make too much"),
        ("&a [*a]", "refer to themselves"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5_000, "digits"),
        ("1" * 30, "whole number of 30 digits"),
        ("2020-13-45", "month must be in 1..12"),
        ("!!bool maybe", "KeyError"),
        ("!!timestamp x", "AttributeError"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("? [a]\n: 1", "unhashable key"),
        ("a: b: c", "mapping values are not allowed"),
        ("\x01", "special characters"),
    ],
)
def test_yaml_that_costs_or_breaks_more_than_it_should_is_refused(text: str, match: str, unique_keys: bool) -> None:
    with pytest.raises(ValueError, match=match):
        parse_yaml(text, unique_keys=unique_keys)


def test_ordinary_aliases_of_yaml_are_read() -> None:
    found: Any = parse_yaml("a: &a {x: 1, y: 0x10}\nb: {<<: *a, x: 2}\nc: [*a, *a]")
    assert found == {"a": {"x": 1, "y": 16}, "b": {"x": 2, "y": 16}, "c": [{"x": 1, "y": 16}] * 2}


def test_a_yaml_file_has_a_largest_size(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("- a\n" * 100_000)
    with pytest.raises(RecordError, match=r"larger than the 0\.25 MiB"):
        read_yaml(tmp_path / "x.yaml", raises=RecordError)


def test_rows_of_a_table_have_the_columns_of_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a;b\n1;"2\n3"\n4\n5;6;7\n')
    assert read_csv(tmp_path / "x.csv", raises=RecordError, delimiter=";") == [
        {"a": "1", "b": "2\n3"},
        {"a": "4"},
        {"a": "5", "b": "6"},
    ]
    (tmp_path / "x.csv").write_text("a;b\n" + "x" * 200_000)
    with pytest.raises(RecordError, match=r"x\.csv is not a table: field larger"):
        read_csv(tmp_path / "x.csv", raises=RecordError, delimiter=";")
