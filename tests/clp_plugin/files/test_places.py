"""An input of a run is never replaced, by whatever name it goes; a folder in use is not swapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from interruptions import content

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import staged_folder, write_text_atomically
from clp_plugin.files.places import inputs_kept

NAMES: dict[str, Callable[[Path, Path], object]] = {
    "itself": lambda name, file: None,
    "link": lambda name, file: name.symlink_to(file),
    "hard link": lambda name, file: name.hardlink_to(file),
}


@pytest.mark.parametrize("given", ["file", "its folder"])
@pytest.mark.parametrize("kind", NAMES)
def test_an_input_is_never_replaced_under_any_name(tmp_path: Path, given: str, kind: str) -> None:
    file = tmp_path / "record" / "model.pt"
    file.parent.mkdir()
    file.write_text("input")
    name = file if kind == "itself" else tmp_path / "name.pt"
    NAMES[kind](name, file)
    before = content(tmp_path)
    with inputs_kept(file if given == "file" else file.parent):
        with pytest.raises(ConfigError, match=r"is the same file as .*model.pt, an input of this run"):
            write_text_atomically(name, "new")
        write_text_atomically(tmp_path / "other.pt", "new")
    assert content(tmp_path) == {**before, "other.pt": b"new"}
    write_text_atomically(name, "new")  # outside it is a file like any other


def test_a_folder_that_holds_an_input_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "runs" / "record").mkdir(parents=True)
    (tmp_path / "runs" / "record" / "model.pt").write_text("input")
    for folder in (tmp_path / "runs" / "record", tmp_path / "runs"):
        with (
            pytest.raises(ConfigError, match=r"holds .*model.pt, an input of this run"),
            inputs_kept(tmp_path / "runs" / "record"),
            staged_folder(folder),
        ):
            pass
    assert content(tmp_path) == {"runs/record/model.pt": b"input"}


def test_the_current_folder_and_those_above_it_are_not_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (Path(), Path(".."), Path("/")):
        with pytest.raises(ConfigError, match="is in use as a whole"), staged_folder(folder):
            pass
    with staged_folder(Path("below")):
        pass
    assert content(tmp_path) == {"here/below": b"folder"}
