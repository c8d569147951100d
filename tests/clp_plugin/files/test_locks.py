"""One run at a time in one place, seen with real processes; what dead runs left is told from what living ones write."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interruptions import content, fork, needs_fork, wait

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import staged_folder, write_text_atomically
from clp_plugin.files.locks import claimed, claimed_inside, clear_dead

pytestmark = needs_fork


def until(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < limit, "nothing happened for 20 seconds"
        time.sleep(0.005)


def stuck_in(work: Callable[[], object], seen: Path) -> int:
    """A process that has got as far as to make ``seen``, and stays there until it is killed."""

    def endless() -> None:
        work()
        time.sleep(60)

    child = fork(endless)
    until(seen.exists)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    wait(child)


def half_done(destination: Path) -> Callable[[], None]:
    def work() -> None:
        with staged_folder(destination) as place:
            (place / "half.txt").write_text("half")
            (destination.parent / "ready").touch()
            time.sleep(60)

    return work


def test_many_processes_never_write_one_place_at_a_time(tmp_path: Path) -> None:
    """Each adds 1 to a number in a folder that it replaces whole; none of the additions is lost."""

    def add() -> None:
        for _ in range(8):
            with claimed(tmp_path / "result"):
                number = tmp_path / "result" / "number.txt"
                found = int(number.read_text()) if number.exists() else 0
                with staged_folder(tmp_path / "result") as place:
                    write_text_atomically(place / "number.txt", str(found + 1))

    def clear() -> None:
        for _ in range(100):
            clear_dead(tmp_path)

    assert {wait(child) for child in [fork(work) for work in (add, clear, add, add, clear, add)]} == {0}
    assert content(tmp_path) == {"result/number.txt": b"32"}


def test_a_second_run_waits_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def hold() -> None:
        with claimed(tmp_path / "result"):
            (tmp_path / "ready").touch()
            time.sleep(1.3)
            (tmp_path / "ended").touch()

    child = fork(hold)
    until((tmp_path / "ready").exists)
    with claimed(tmp_path / "result"):
        assert (tmp_path / "ended").exists()
    assert caplog.messages == [f"waiting for another run that writes {tmp_path / 'result'}"]
    assert wait(child) == 0


def test_a_run_that_does_not_wait_gives_way_and_changes_nothing(tmp_path: Path) -> None:
    child = stuck_in(half_done(tmp_path / "result"), tmp_path / "ready")
    before = content(tmp_path)
    with (
        pytest.raises(ConfigError, match="result: another run is writing there"),
        claimed(tmp_path / "result", wait=False),
    ):
        pass
    clear_dead(tmp_path)
    assert content(tmp_path) == before
    end(child)
    with claimed(tmp_path / "result", wait=False):
        pass
    assert content(tmp_path) == {"ready": b""}


def test_only_what_is_dead_is_cleared_at_any_depth(tmp_path: Path) -> None:
    alive = tmp_path / "a" / "b" / "c"
    alive.mkdir(parents=True)
    dead = tmp_path / "x" / "y"
    dead.mkdir(parents=True)
    child = stuck_in(half_done(alive / "result"), alive / "ready")
    end(stuck_in(half_done(dead / "result"), dead / "ready"))
    (dead / ".figure.png.clp-new").write_text("half")
    (dead / ".gone.clp-old").mkdir()
    (dead / ".gone.clp-old" / "a.txt").write_text("was there")
    (dead / ".mine.new").write_text("the user's own")
    clear_dead(tmp_path)
    assert content(dead) == {"ready": b"", "gone/a.txt": b"was there", ".mine.new": b"the user's own"}
    assert ".result.clp-new/half.txt" in content(alive)
    end(child)


def test_one_run_at_a_time_fills_a_folder_and_what_is_not_filled_is_not_made(tmp_path: Path) -> None:
    def hold() -> None:
        with claimed_inside(tmp_path / "deep" / "out"):
            (tmp_path / "ready").touch()
            time.sleep(60)

    child = stuck_in(hold, tmp_path / "ready")
    told = pytest.raises(ConfigError, match=r"deep/out: another run is writing there")
    with told, claimed_inside(tmp_path / "deep" / "out", wait=False):
        pass
    end(child)
    with claimed_inside(tmp_path / "deep" / "out", wait=False), claimed_inside(tmp_path / "deep" / "out"):
        pass
    with claimed_inside(tmp_path / "other" / "out"):
        pass
    assert not (tmp_path / "other").exists()
    assert content(tmp_path) == {"ready": b"", "deep/out": b"folder"}


def test_a_place_may_be_claimed_again_by_its_owner(tmp_path: Path) -> None:
    with claimed(tmp_path / "result"), claimed(tmp_path / "result", wait=False):
        write_text_atomically(tmp_path / "result", "x")
    assert content(tmp_path) == {"result": b"x"}
