"""A folder is replaced whole or not at all, whenever the process dies."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clp_plugin.errors import ConfigError
from clp_plugin.files.checkpoints import staged_folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_folder_appears_with_all_its_files_and_nothing_beside_it(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "new" / "result") as place:
        assert not (tmp_path / "new" / "result").exists()
        (place / "a.txt").write_text("1")
        (place / "deep").mkdir()
        (place / "deep" / "b.txt").write_text("2")
    assert content(tmp_path) == {"new/result/a.txt": "1", "new/result/deep/b.txt": "2"}


def test_an_old_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "old.txt").write_text("old")
    with staged_folder(tmp_path / "result") as place:
        (place / "new.txt").write_text("new")
    assert content(tmp_path) == {"result/new.txt": "new"}


def test_a_failure_inside_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "old.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "result") as place:
        (place / "new.txt").write_text(str(1 // 0))
    assert content(tmp_path) == {"result/old.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


# Dies before the n-th rename: before the old folder is set aside, between the two, and after the second.
KILLED = """
    import os, pathlib, sys
    from clp_plugin.files.checkpoints import staged_folder

    target, deadly, rename, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path.rename, 0

    def dying(self, other):
        global count
        count += 1
        if count == deadly:
            os._exit(9)
        rename(self, other)

    pathlib.Path.rename = dying
    with staged_folder(target) as place:
        (place / "new.txt").write_text("new")
"""


@pytest.mark.parametrize("deadly", [1, 2])
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, deadly: int) -> None:
    target = tmp_path / "result"
    target.mkdir()
    (target / "old.txt").write_text("old")
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(target), str(deadly)], check=False)
    assert child.returncode == 9
    assert "old" in content(tmp_path).values(), "the old result is still somewhere"
    with pytest.raises(ZeroDivisionError), staged_folder(target):  # the next run, which fails itself
        raise ZeroDivisionError
    assert content(tmp_path) == {"result/old.txt": "old"}


def test_a_place_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ConfigError, match=r"cannot write .*file/result: File exists"),
        staged_folder(tmp_path / "file" / "result"),
    ):
        pass
