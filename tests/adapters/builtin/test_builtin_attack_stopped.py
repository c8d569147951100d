"""An attack stopped before any of its write steps goes on, and ends with the record that an undisturbed one makes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from interruptions import content, ctrl_c, fork, kill, needs_fork, wait
from small_attack import run_attack

from clp_plugin.adapters.builtin import attack as attack_module
from clp_plugin.adapters.builtin.attack import CHECKPOINT, attacked, is_finished
from clp_plugin.adapters.builtin.record import BuiltinAdapter
from clp_plugin.adapters.builtin.record_files import UNFINISHED
from clp_plugin.adapters.builtin.settings import PRESETS, AttackSettings
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.files.locks import clear_dead

TINY = replace(
    PRESETS["small"],
    recipe=Recipe(epochs=2, lr=0.05, batch_size=32, precision="float32"),
    n_train=32,
    n_test=20,
    model_options={"width": 2, "blocks": (1,)},
)
OTHER = replace(TINY, seed=5)


@pytest.fixture(autouse=True)
def saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the training is kept after every batch, so that there is something to go on from."""
    real = attack_module.train
    monkeypatch.setattr(attack_module, "train", lambda *args, **kw: real(*args, checkpoint_seconds=0, **kw))


def record(settings: AttackSettings, out: Path, *, force: bool = False) -> Callable[[], Path]:
    return lambda: run_attack(settings, out, force=force)


def made(out: Path) -> dict[str, object]:
    """What is in a record and beside it, but for the words on the run itself."""
    found: dict[str, object] = {**content(out.parent)}
    found[f"{out.name}/record.json"] = json.loads((out / "record.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return made(run_attack(TINY, tmp_path_factory.mktemp("undisturbed") / "x"))


STOPS = {"Ctrl-C": ctrl_c, "SIGKILL": pytest.param(kill, marks=[needs_fork, pytest.mark.slow])}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_the_same_command_goes_on_after_a_stop_at_any_step(
    tmp_path: Path, undisturbed: dict[str, object], stop: Callable[..., object]
) -> None:
    stopped = 0
    while True:
        out = tmp_path / str(stopped) / "x"
        if not stop(record(TINY, out), stopped):
            break
        run_attack(TINY, out)
        assert made(out) == undisturbed, stopped
        stopped += 1
    assert stopped > 20
    assert made(out) == undisturbed


@needs_fork
@pytest.mark.slow
def test_a_replacement_killed_at_any_step_goes_on_too(tmp_path: Path, undisturbed: dict[str, object]) -> None:
    out = tmp_path / "x"
    killed = 0
    while True:
        run_attack(OTHER, out, force=True)
        if not kill(record(TINY, out, force=True), killed):
            break
        clear_dead(tmp_path)
        assert BuiltinAdapter().sniff(out)
        run_attack(TINY, out, force=True)
        assert made(out) == undisturbed, killed
        killed += 4  # each of the steps is the same as in the test above
    assert killed > 20


def test_a_complete_record_is_refused_or_used_again(tmp_path: Path) -> None:
    out = run_attack(TINY, tmp_path / "x")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(RecordError, match="holds a complete record"):
        run_attack(TINY, out)
    with attacked(TINY, out, reuse=True, progress=lambda *_: pytest.fail("trained")):
        pass
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "model.safetensors").unlink()
    assert not is_finished(TINY, out)


def test_a_command_that_stops_after_the_training_goes_on_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), attacked(TINY, tmp_path / "x"):
        raise ZeroDivisionError
    run_attack(TINY, tmp_path / "x", progress=lambda *_: pytest.fail("trained"))
    assert not (tmp_path / "x" / UNFINISHED).exists()


@needs_fork
def test_using_a_record_keeps_what_an_unfinished_replacement_has_done(tmp_path: Path) -> None:
    out = run_attack(TINY, tmp_path / "x")
    assert kill(record(OTHER, out, force=True), 12)
    assert (out / CHECKPOINT).exists()
    with attacked(TINY, out, reuse=True):
        pass
    assert (out / CHECKPOINT).exists()
    assert (out / UNFINISHED).exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", CHECKPOINT])
def test_a_file_that_no_attack_wrote_stays(tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RecordError, match=f"holds {name} of no known attack"):
        run_attack(TINY, tmp_path, force=force)
    assert content(tmp_path) == {name: b"mine"}


@needs_fork
def test_a_second_attack_gives_way_or_waits(tmp_path: Path, undisturbed: dict[str, object]) -> None:
    out = tmp_path / "x"

    def slow() -> None:
        run_attack(TINY, out, progress=lambda *_: time.sleep(0.8))

    child = fork(slow)
    while not (out / UNFINISHED).exists():
        time.sleep(0.01)
    with pytest.raises(ConfigError, match="another run is writing there"):
        run_attack(TINY, out)
    with attacked(TINY, out, reuse=True, progress=lambda *_: pytest.fail("trained twice")):
        pass
    assert wait(child) == 0
    assert made(out) == undisturbed


@needs_fork
def test_a_reader_sees_a_record_only_when_it_is_complete(tmp_path: Path) -> None:
    def train() -> None:
        for seed in range(3):
            run_attack(replace(TINY, seed=seed), tmp_path / str(seed))

    child = fork(train)
    states: set[tuple[str, bool]] = set()
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        for listing in BuiltinAdapter().records(tmp_path):
            states.add((listing.path.name, listing.complete))
            if listing.complete:
                BuiltinAdapter().open(listing.path)
    assert wait(child) == 0
    assert {name for name, _ in states} <= {"0", "1", "2"}
