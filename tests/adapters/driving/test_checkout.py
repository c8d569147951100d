"""The toolbox is found where the user said, cloned whole or not at all, and identified by its commit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_checkout import content, write

from clp_plugin.adapters.backdoorbench.toolbox_facts import BACKDOORBENCH
from clp_plugin.adapters.driving.checkout import commit_of, find_checkout, install, stored_commit
from clp_plugin.config import CONFIG_VARIABLE, remember_toolbox
from clp_plugin.errors import ConfigError

VARIABLE = "BACKDOORBENCH_ROOT"
MARKS = ("attack/badnet.py", "defense/clp.py", "utils/save_load_attack.py")


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "settings.yaml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def toolbox(root: Path) -> Path:
    for mark in MARKS:
        write(root / mark, "theirs\n")
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "uploadpack.allowFilter=true"]
    done = subprocess.run(
        ["git", *identity, "-C", str(root), *arguments], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits; the second adds a figure, a notebook and a second toolbox."""
    root = toolbox(tmp_path / "Quelle mit Leerzeichen ü")
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "one")
    for name in ("analysis/visual_tac.py", "analysis/Demos/Demo.ipynb", "backdoorbench_nlp/attack.py"):
        write(root / name, name)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "two")
    return root


@pytest.mark.parametrize("mark", [*MARKS, None])
def test_a_checkout_is_known_by_its_names(tmp_path: Path, mark: str | None) -> None:
    root = toolbox(tmp_path / "bench")
    if mark is not None:
        (root / mark).unlink()
        (root / mark).parent.rmdir()
    assert bool(BACKDOORBENCH.lacking(root)) is (mark is not None)


def test_each_place_gives_way_to_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argument, variable, configured, current, lived_in = (toolbox(tmp_path / str(number)) for number in range(5))
    record = lived_in / "record" / "eins"
    record.mkdir(parents=True)

    def found(root: Path | None = None) -> tuple[Path, str]:
        checkout = find_checkout(BACKDOORBENCH, root, record=record)
        return checkout.root, checkout.found_by

    assert found() == (lived_in, "the record's place")
    monkeypatch.chdir(current)
    assert found() == (current, "the current folder")
    remember_toolbox("backdoorbench", configured)
    assert found() == (configured, str(tmp_path / "settings.yaml"))
    monkeypatch.setenv(VARIABLE, str(variable))
    assert found() == (variable, VARIABLE)
    assert found(argument) == (argument, "--root")


@pytest.mark.parametrize("named", ["--root", VARIABLE, "settings.yaml"])
def test_a_place_that_was_named_is_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(toolbox(tmp_path / "good"))
    wrong = tmp_path / "wrong"
    write(wrong / "attack" / "x.py")
    if named == VARIABLE:
        monkeypatch.setenv(VARIABLE, str(wrong))
    if named == "settings.yaml":
        remember_toolbox("backdoorbench", wrong)
    with pytest.raises(ConfigError) as caught:
        find_checkout(BACKDOORBENCH, wrong if named == "--root" else None)
    message = str(caught.value)
    assert named in message.partition(":")[0]
    assert f"{wrong} is no BackdoorBench checkout: it lacks defense, utils/save_load_attack.py;" in message


def test_an_empty_variable_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.chdir(toolbox(tmp_path / "here"))
    assert find_checkout(BACKDOORBENCH).found_by == "the current folder"


def test_without_any_the_message_tells_every_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_checkout(BACKDOORBENCH, record=tmp_path / "copied" / "record" / "eins")
    message = str(caught.value)
    for way in ("--root PATH", VARIABLE, "bench toolbox install backdoorbench", "work in its folder"):
        assert way in message
    assert str(tmp_path / "elsewhere") in message
    assert str(tmp_path / "copied") in message
    assert len(message.splitlines()) == 1


def test_relative_places_and_the_home_folder_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolbox(tmp_path / "bench")
    (tmp_path / "bench" / "record" / "eins").mkdir(parents=True)
    assert find_checkout(BACKDOORBENCH, Path("../bench")).root.resolve() == tmp_path / "bench"
    assert find_checkout(BACKDOORBENCH, Path("~/bench")).root == tmp_path / "bench"
    monkeypatch.chdir(tmp_path / "bench" / "record")
    assert find_checkout(BACKDOORBENCH, record=Path("eins")).root == tmp_path / "bench"


def test_a_clone_has_the_commit_asked_for_and_no_changes(repository: Path, tmp_path: Path) -> None:
    first, second = git(repository, "rev-parse", "main~1"), git(repository, "rev-parse", "main")
    old = install(BACKDOORBENCH, tmp_path / "old", source=str(repository), ref=first)
    assert old == tmp_path / "old"
    assert not (old / "analysis").exists()
    new = install(BACKDOORBENCH, tmp_path / "new ü" / "bench", source=str(repository), ref="main")
    for root, commit in ((old, first), (new, second)):
        assert not BACKDOORBENCH.lacking(root)
        assert commit_of(root) == commit
        assert git(root, "status", "--porcelain") == ""
    assert (new / "analysis" / "visual_tac.py").is_file()
    assert not (new / "analysis" / "Demos").exists()
    assert not (new / "backdoorbench_nlp").exists()


def test_a_source_that_lacks_the_demos_is_enough(repository: Path, tmp_path: Path) -> None:
    """A partial clone: the contents of files that were not checked out are not in it, and nowhere to be had."""
    partial = tmp_path / "partial"
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", "--no-checkout", "--filter=blob:none", repository.as_uri(), str(partial))
    git(partial, "sparse-checkout", "set", "--no-cone", "/*", "!/analysis/Demos/", "!/backdoorbench_nlp/")
    git(partial, "checkout", "--quiet", "main")
    repository.rename(tmp_path / "unplugged")
    notebook = git(partial, "rev-parse", "main:analysis/Demos/Demo.ipynb")
    with pytest.raises(subprocess.CalledProcessError):
        git(partial, "cat-file", "-e", notebook)
    root = install(BACKDOORBENCH, tmp_path / "bench", source=str(partial), ref="main")
    assert (root / "analysis" / "visual_tac.py").is_file()
    assert git(root, "status", "--porcelain") == ""


def test_a_clone_that_fails_leaves_nothing_and_gives_gits_own_words(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other / "README.md", "not the toolbox")
    git(other, "init", "--quiet", "--initial-branch=main")
    git(other, "add", ".")
    git(other, "commit", "--quiet", "-m", "one")
    before = content(tmp_path)
    cases = [
        (tmp_path / "nowhere", None, ["cannot clone", "--source FOLDER", "(git: fatal: repository", "does not exist"]),
        (repository, None, [f"cannot check out {BACKDOORBENCH.tested}", "--ref", "(git: fatal: "]),
        (repository, "v9", ["cannot check out v9", "--ref", "(git: ", "v9"]),
        (other, "main", ["is no BackdoorBench", "lacks attack, defense", "--source"]),
    ]
    for source, ref, said in cases:
        with pytest.raises(ConfigError) as caught:
            install(BACKDOORBENCH, tmp_path / "bench", source=str(source), ref=ref)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert [word for word in said if word not in message] == [], message
        assert content(tmp_path) == before


def test_only_an_empty_place_is_taken(repository: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine" / "thesis.tex", "work")
    for place in (mine, mine.parent):
        with pytest.raises(ConfigError, match="is not empty"):
            install(BACKDOORBENCH, place, source=str(repository), ref="main")
    assert mine.read_text() == "work"
    (tmp_path / "empty").mkdir()
    assert not BACKDOORBENCH.lacking(install(BACKDOORBENCH, tmp_path / "empty", source=str(repository), ref="main"))


def test_the_commit_says_whether_tracked_files_differ(repository: Path, tmp_path: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    write(repository / "record" / "eins" / "attack_result.pt", "new")
    assert commit_of(repository) == head
    write(repository / "attack" / "badnet.py", "mine\n")
    assert commit_of(repository) == f"{head}+changes"
    assert commit_of(repository / "attack") == "", "a folder inside somebody's repository is not that repository"
    assert commit_of(tmp_path / "elsewhere") == ""


def test_without_git_a_clone_says_so_and_a_commit_is_not_known(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere") + os.pathsep)
    assert commit_of(repository) == ""
    with pytest.raises(ConfigError, match="git is not installed"):
        install(BACKDOORBENCH, tmp_path / "bench", source=str(repository), ref="main")
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize("named", ["core.fsmonitor", "filter.x.clean", "filter.x.process", "hook"])
def test_identifying_a_checkout_runs_nothing_that_it_names(tmp_path: Path, repository: Path, named: str) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch '{ran}'\ncat\n")
    program.chmod(0o755)
    if named == "hook":
        (repository / ".git/hooks/post-index-change").write_text(program.read_text())
        (repository / ".git/hooks/post-index-change").chmod(0o755)
    else:
        git(repository, "config", named, str(program))
        write(repository / ".git/info/attributes", "* filter=x\n")
    commit = commit_of(repository)
    for mark in MARKS:  # git has to look into the files
        os.utime(repository / mark, (1, 1))
    assert commit_of(repository) == commit != ""
    assert not ran.exists()
    git(repository, "status")
    assert ran.exists(), "git itself must run it, or the test proves nothing"


def test_a_checkout_whose_filters_cannot_be_switched_off_is_not_identified(tmp_path: Path, repository: Path) -> None:
    git(repository, "config", "filter.a=b.clean", "true")
    assert commit_of(repository) == ""


@pytest.mark.parametrize("way", ["branch", "packed", "detached", "second work tree", "no commit", "no git"])
def test_the_commit_is_read_from_the_files_of_git(repository: Path, tmp_path: Path, way: str) -> None:
    root = repository
    if way == "packed":
        git(root, "pack-refs", "--all")
    elif way == "detached":
        git(root, "checkout", "--quiet", "--detach", "HEAD~1")
    elif way == "second work tree":
        git(root, "worktree", "add", "--quiet", "-b", "other/branch", str(tmp_path / "second"), "HEAD~1")
        root = tmp_path / "second"
    elif way == "no commit":
        root = tmp_path / "new"
        root.mkdir()
        git(root, "init", "--quiet")
    elif way == "no git":
        root = toolbox(tmp_path / "copy")
    expected = "" if way.startswith("no ") else git(root, "rev-parse", "HEAD")
    assert stored_commit(root) == expected


@pytest.mark.parametrize("head", ["ref: ../../secret", "ref: refs/heads/.invalid", "", "7" * 39])
def test_what_is_no_commit_is_not_told_as_one(tmp_path: Path, head: str) -> None:
    write(tmp_path / "copy" / ".git" / "HEAD", head)
    write(tmp_path / "secret", "something else\n")
    assert stored_commit(tmp_path / "copy") == ""
