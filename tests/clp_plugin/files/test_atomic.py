"""A file and a folder are replaced whole or not at all, whatever ends the process and whatever the disk refuses."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import content, ctrl_c, fork, kill, needs_fork, wait

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import (
    filled_folder,
    staged_folder,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from clp_plugin.files.checkpoints import load_checkpoint, save_weights
from clp_plugin.files.locks import clear_dead
from clp_plugin.reports._style import new_figure, save_figure
from clp_plugin.reports.tables import to_csv

resource = pytest.importorskip("resource", reason="limits the size of files")
WEIGHTS = {"weight": torch.arange(3000.0)}


def fill(destination: Path) -> None:
    """A run of the kind that commands are: two files in a folder that appears whole."""
    with staged_folder(destination) as place:
        write_text_atomically(place / "a.txt", "new a")
        write_text_atomically(place / "b.txt", "new b")


def old_result(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("old a")
    return folder


NEW = {"result/a.txt": b"new a", "result/b.txt": b"new b"}
OLD = {"result/a.txt": b"old a"}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: found for name, found in content(folder).items() if not name.startswith(".")}


# --- a file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    write_text_atomically(tmp_path / "x.json", "old")

    def half_way(file: Any) -> None:
        file.write(b"ne")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "x.json", half_way)
    assert content(tmp_path) == {"x.json": b"old"}


def test_a_written_file_has_ordinary_permissions_and_new_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.safetensors"
    save_weights(WEIGHTS, path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_is_utf_8_and_what_is_no_text_in_a_file_name_can_be_read(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "x.txt", "grüße\n")
    assert (tmp_path / "x.txt").read_bytes() == "grüße\n".encode()
    write_json_atomically(tmp_path / "x.json", {"path": "runs/\udcff", "b": (float("inf"), [float("nan"), "ß"])})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"path": "runs/\udcff", "b": [None, [None, "ß"]]}
    to_csv([{"path": "runs/\udcff"}], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text("utf-8").splitlines() == ["path", "runs/\\udcff"]


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_equal_weights_give_equal_files_under_any_name(tmp_path: Path, name: str) -> None:
    save_weights(WEIGHTS, tmp_path / name)
    save_weights(WEIGHTS, tmp_path / f"other_{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"other_{name}").read_bytes()
    assert torch.equal(load_checkpoint(tmp_path / name)["weight"], WEIGHTS["weight"])


def draw(path: Path) -> None:
    figure = new_figure(4, 4)
    figure.subplots().plot([1, 2, 3])
    save_figure(figure, path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda folder: save_weights(WEIGHTS, folder / "x.pt"),
    "safetensors": lambda folder: save_weights(WEIGHTS, folder / "x.safetensors"),
    "matplotlib": lambda folder: draw(folder / "x"),
    "pandas": lambda folder: to_csv([{"a": k, "b": str(k)} for k in range(2000)], folder / "x.csv"),
    "text": lambda folder: write_text_atomically(folder / "x.txt", "x" * 5000),
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files of more than 3000 bytes, in the middle of a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_the_disk_refuses_to_any_writer_is_said_in_one_line(
    tmp_path: Path, writer: Callable[[Path], object]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*x\.\w+: File too large; make room there") as told:
        writer(tmp_path)
    assert "\n" not in str(told.value)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x" * 256, "File name too long; choose a shorter name"),
        ("x" * 250, "File name too long; choose a shorter name"),  # with the marks of what is unfinished
        ("file/x", "Not a directory"),
        ("file/x/y", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("a\0b", "null"),
        ("folder", "it is a folder, expected a file"),
        ("pipe", "it is a named pipe, expected a file"),
        ("socket", "it is a socket, expected a file"),
        ("link_to_pipe", "it is a named pipe, expected a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_and_stays(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link_to_pipe").symlink_to("pipe")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as opened, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # the path of a socket must be short
        opened.bind("socket")
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(ConfigError, match=rf"cannot write .*{told}"):
            write_text_atomically(tmp_path / name, "new")
        if name != "folder":
            with pytest.raises(ConfigError, match=rf"cannot write .*{told.replace('a file', 'a folder')}"):
                fill(tmp_path / name)
        assert sorted(path.name for path in tmp_path.iterdir()) == before


@needs_fork
def test_a_folder_without_permission_is_said_in_one_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)

    def as_nobody() -> None:
        if os.geteuid() == 0:
            tmp_path.chmod(0o755)
            os.seteuid(65534)  # root may write anywhere
        for work in (lambda: write_text_atomically(locked / "x.txt", ""), lambda: fill(locked / "result")):
            with pytest.raises(ConfigError, match=r"cannot write .*: Permission denied; choose another place"):
                work()

    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode | 0o111)
    assert wait(fork(as_nobody)) == 0


@needs_fork
def test_a_folder_is_filled_though_nothing_may_be_put_beside_it(tmp_path: Path) -> None:
    """As the mount point of a volume in a container: its own files can be written, the folder above cannot."""
    folder = tmp_path / "above" / "volume"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    folder.parent.chmod(0o555)

    def as_nobody() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        with filled_folder(folder):
            write_text_atomically(folder / "x.txt", "new")

    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    assert wait(fork(as_nobody)) == 0
    assert content(folder) == {"x.txt": b"new"}


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_new_folder_appears_with_all_its_files_and_nothing_beside_it(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "new" / "result") as place:
        assert not (tmp_path / "new" / "result").exists()
        (place / "deep").mkdir()
        (place / "deep" / "b.txt").write_text("2")
    assert content(tmp_path) == {"new/result/deep/b.txt": b"2"}
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new" / "result").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_old_folder_is_replaced_whole(tmp_path: Path) -> None:
    (old_result(tmp_path / "result") / "c.txt").write_text("old c")
    fill(tmp_path / "result")
    assert content(tmp_path) == NEW


def test_a_failure_inside_leaves_the_old_folder_as_it_was_and_no_new_parents(tmp_path: Path) -> None:
    for destination in (old_result(tmp_path / "result"), tmp_path / "deep" / "er" / "result"):
        with pytest.raises(ZeroDivisionError), staged_folder(destination) as place:
            (place / "new.txt").write_text(str(1 // 0))
    assert content(tmp_path) == OLD


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("result", "empty", "absent"):
        (tmp_path / name).symlink_to(elsewhere / name)
    old_result(elsewhere / "result")
    (elsewhere / "empty").mkdir()
    for name in ("result", "empty", "absent"):
        fill(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (elsewhere / name / "b.txt").read_text() == "new b"
    (tmp_path / "link.txt").symlink_to(elsewhere / "file.txt")
    write_text_atomically(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (elsewhere / "file.txt").read_text() == "new"


# --- stopped at every step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [{}, OLD], ids=["absent", "old"])
def test_ctrl_c_before_any_step_leaves_the_old_or_the_new_and_nothing_else(
    tmp_path: Path, before: dict[str, bytes]
) -> None:
    stopped = 0
    while True:
        place = tmp_path / str(stopped)
        place.mkdir()
        if before:
            old_result(place / "result")
        step = ctrl_c(lambda place=place: fill(place / "result"), stopped)
        if not step:
            break
        assert visible(place) in (before, NEW)
        if not step.startswith(("clear", "unlock")):  # Ctrl-C while tidying up leaves that to the next run
            assert content(place) == visible(place)
        fill(place / "result")
        assert content(place) == NEW
        stopped += 1
    assert stopped > 10
    assert content(place) == NEW


@needs_fork
@pytest.mark.parametrize("before", [{}, OLD], ids=["absent", "old"])
@pytest.mark.parametrize("then", ["the same run", "another command", "a run that fails"])
def test_a_kill_before_any_step_loses_nothing_and_the_next_run_clears_up(
    tmp_path: Path, before: dict[str, bytes], then: str
) -> None:
    killed = 0
    while True:
        place = tmp_path / str(killed)
        place.mkdir()
        if before:
            old_result(place / "result")
        if not kill(lambda place=place: fill(place / "result"), killed):
            break
        if then == "the same run":
            fill(place / "result")
            assert content(place) == NEW
        elif then == "another command":
            clear_dead(place)
            assert content(place) in (before, NEW)
        else:
            with pytest.raises(ZeroDivisionError), staged_folder(place / "result"):
                raise ZeroDivisionError
            assert content(place) in (before, NEW)
        killed += 1
    assert killed > 10
    assert content(place) == NEW
