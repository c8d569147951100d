"""A script in a process of its own: what it prints comes at once, and it ends, with all that it started, when it should."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from fake_checkout import DIRECT, write
from processes import PATIENCE, gone

from clp_plugin.adapters.driving.process import Script, run_script
from clp_plugin.errors import ToolboxError

QUICK = 2.0  # seconds: enough for a script to start on a busy machine, and no time for one that sleeps


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    write(tmp_path / "toolbox" / "direct.py", DIRECT)
    return tmp_path / "toolbox"


def run(place: Path, code: str, *arguments: str, limit: float | None = None, **more: bool) -> tuple[list[str], float]:
    """Lines as reported and seconds; the log must hold the same lines."""
    write(place / "defense" / "x.py", code)
    lines: list[str] = []
    log = place.parent / "logs" / "x.log"
    script = Script("defense/x.py", arguments, "direct", **more)
    seconds = run_script(script, place, log, report=lines.append, time_limit=limit)
    assert log.read_text(encoding="utf-8").splitlines() == lines
    return lines, seconds


def refused(place: Path, code: str, *arguments: str, limit: float | None = None) -> str:
    with pytest.raises(ToolboxError) as caught:
        run(place, code, *arguments, limit=limit)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("defense/x.py ")
    assert message.endswith(f"its output is in {place.parent / 'logs' / 'x.log'}")
    return message


def test_output_and_errors_come_in_order_and_lie_in_the_log(place: Path) -> None:
    lines, seconds = run(
        place, 'import sys\nprint("eins")\nprint("zwei ü", file=sys.stderr)\nprint(sys.argv)', "--u", "3"
    )
    assert lines == ["eins", "zwei ü", "['defense/x.py', '--u', '3']"]
    assert 0 < seconds < PATIENCE


def test_a_line_is_reported_while_the_script_still_runs(place: Path) -> None:
    """The script ends only when what its first line asks for has been done."""
    code = """
        import os, time
        print("make", "asked", sep=" ")
        until = time.monotonic() + 20
        while not os.path.exists("asked") and time.monotonic() < until:
            time.sleep(0.01)
        print("found" if os.path.exists("asked") else "waited in vain")
    """
    write(place / "defense" / "x.py", code)
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if line == "make asked":
            (place / "asked").touch()

    run_script(Script("defense/x.py", [], "direct"), place, place.parent / "x.log", report=report)
    assert lines == ["make asked", "found"]


def test_the_child_has_its_own_group_no_screen_and_the_users_choice_of_devices(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    names = ["MPLBACKEND", "PYTHONUTF8", "CUDA_VISIBLE_DEVICES", "PYTHONDONTWRITEBYTECODE"]
    code = f"""
        import json, os, sys
        facts = [os.getpgid(0) == os.getpid(), os.getcwd(), sys.stdin.read(), FLAGS]
        print(json.dumps([*facts, *map(os.environ.get, {names!r})]))
    """
    [line] = run(place, code, trust=True, fast_cpu=True)[0]
    assert json.loads(line) == [True, str(place.resolve()), "", ["--trust", "--fast-cpu"], "Agg", "1", "3,1", "1"]
    assert Script("defense/x.py", ["--u", "3"], "direct").command()[0] == sys.executable


def test_bytes_that_are_no_text_and_progress_bars_are_lines_too(place: Path) -> None:
    code = r"""
        import sys
        sys.stdout.buffer.write(b"\xff\xfe 50%\r100%\n")
    """
    assert run(place, code)[0] == ["\ufffd\ufffd 50%", "100%"]


def test_a_crash_names_the_exception_and_not_the_lines_around_it(place: Path) -> None:
    code = """
        import sys
        print("ValueError was yesterday")
        def inner():
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        try:
            inner()
        finally:
            import atexit
            atexit.register(print, "goodbye")
    """
    message = refused(place, code)
    assert message.startswith(
        "defense/x.py failed (exit status 1): RuntimeError: mat1 and mat2 shapes cannot be multiplied; "
    )


def test_a_refused_option_is_told_in_the_scripts_words(place: Path) -> None:
    code = "import argparse; argparse.ArgumentParser().parse_args()"
    assert "(exit status 2): x.py: error: unrecognized arguments: --beta 3;" in refused(place, code, "--beta", "3")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(3)", "exit status 3): it printed nothing;"),
        ("import os; print('almost there', flush=True); os._exit(3)", "exit status 3): almost there;"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal SIGKILL): it printed nothing;"),
    ],
)
def test_an_end_without_an_exception_is_told_by_its_status_and_last_line(place: Path, code: str, said: str) -> None:
    assert said in refused(place, code)


def test_the_time_limit_stops_a_hanging_script_and_keeps_what_it_said(place: Path) -> None:
    message = refused(place, "import time\nprint('started')\ntime.sleep(600)", limit=QUICK)
    assert "was stopped after the time limit of 2 s" in message
    assert (place.parent / "logs" / "x.log").read_text() == "started\n"


WITH_LOADER = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is started now never hears it
    loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(loader.pid)
"""


@pytest.mark.parametrize("parent", ["hangs", "ends"])
def test_the_time_limit_also_stops_what_the_script_started(place: Path, parent: str) -> None:
    """A loader that hears no signal but the last, and holds the output open, whether its parent still runs or not."""
    code = WITH_LOADER + "    time.sleep(600)\n" * (parent == "hangs")
    start = time.monotonic()
    refused(place, code, limit=QUICK)
    assert time.monotonic() - start < PATIENCE
    lines = (place.parent / "logs" / "x.log").read_text().split()
    [pid] = map(int, lines)
    assert gone(pid)


def test_ctrl_c_stops_the_script_and_what_it_started(place: Path) -> None:
    pids: list[int] = []

    def interrupted(line: str) -> None:
        pids.extend([int(line)] if line.isdigit() else [])
        if len(pids) == 2:
            raise KeyboardInterrupt

    write(place / "defense" / "x.py", WITH_LOADER + "    print(os.getpid())\n    time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        run_script(Script("defense/x.py", [], "direct"), place, place.parent / "x.log", report=interrupted)
    assert all(gone(pid) for pid in pids)


def test_a_script_within_its_limit_is_left_alone(place: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(place, "print('quick')", limit=PATIENCE)[0] == ["quick"]
    assert signal.getsignal(signal.SIGTERM) is before
