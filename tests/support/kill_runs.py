"""Commands killed before each of their write steps, or run several at a time, and what the next run makes of it.

A child process is forked for each run, so that SIGKILL ends a real process and the imports are paid once.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from command_line import bench
from interruptions import content, fork, kill, steps, wait

from clp_plugin.adapters.builtin import settings, toolbox
from clp_plugin.adapters.builtin.training.recipe import Recipe

_VOLATILE = ("seconds", "created", "command")


@dataclass(frozen=True)
class Command:
    """A command on a folder of runs.

    Attributes:
        argv: Of ``bench``; ``{}`` stands for the folder.
        needs: The commands that must have run there before.
        gives_way: Whether a second one at the same time ends with exit code 2, instead of waiting.
    """

    argv: Sequence[str]
    needs: Sequence[str] = ()
    gives_way: bool = False

    def run(self, folder: Path, *, beside_others: bool = False) -> None:
        result = bench(*(word.format(folder) for word in self.argv))
        gave_way = any(told in result.err for told in ("another run is writing there", "holds a complete record"))
        assert result.code == 0 or (beside_others and self.gives_way and gave_way), result.err


COMMANDS = {
    "attack": Command(
        ["attack", "--preset", "small", "--target", "1", "--out", "{}/record", "--device", "cpu"], gives_way=True
    ),
    "defend": Command(["defend", "--record", "{}/record", "--device", "cpu"], ["attack"]),
    "defend bnp": Command(
        ["defend", "--record", "{}/record", "--method", "bnp", "--device", "cpu"], ["attack"]
    ),
    "sweep": Command(["sweep", "--record", "{}/record", "--u", "0:3:1", "--device", "cpu"], ["attack"]),
    "correlate": Command(["correlate", "--record", "{}/record", "--device", "cpu"], ["attack"]),
    "scan": Command(["scan", "{}/record", "--repair", "{}/repaired.pt", "--out", "{}/scan"], ["attack"]),
    "compare": Command(
        ["compare", "--record", "{}/record", "--out", "{}/compared"], ["attack", "defend", "defend bnp", "correlate"]
    ),
    "grid": Command(
        [
            "leaderboard", "run", "--out", "{}/grid", "--attack", "badnets", "--attack-seeds", "3", "--method", "clp",
            "--method", "bnp", "--seeds", "3", "--workers", "0", "--device", "cpu",
        ]
    ),
}  # fmt: skip


@contextlib.contextmanager
def tiny_attacks() -> Iterator[None]:
    """Inside, the preset of ``COMMANDS`` takes a moment: a figure, for one, draws a panel for each layer."""
    recipe = Recipe(epochs=1, lr=0.05, batch_size=32, precision="float32")
    small = replace(
        settings.PRESETS["small"], recipe=recipe, n_train=300, n_test=40, model_options={"width": 2, "blocks": (1,)}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolbox, "PRESETS", {**settings.PRESETS, "small": small})
        yield


def prepared(name: str, folder: Path) -> Path:
    """A folder in which all has run that the command needs."""
    folder.mkdir(parents=True)
    for earlier in COMMANDS[name].needs:
        COMMANDS[earlier].run(folder)
    return folder


def tree(folder: Path) -> dict[str, object]:
    """Path to content, but for times and what they are made of; of figures only that they are there."""
    found: dict[str, object] = {}
    for name, raw in content(folder).items():
        if name.endswith(".json"):
            found[name] = _timeless(json.loads(raw))
        elif name.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(raw.decode())))
            found[name] = [{key: value for key, value in row.items() if not key.startswith(_VOLATILE)} for row in rows]
        elif name.endswith((".png", ".pdf", ".md")):
            found[name] = bool(raw)
        else:
            found[name] = raw
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not key.startswith(_VOLATILE)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def kill_at_each_step(
    name: str, folder: Path, *, every: int = 1, between: Callable[[Path], object] = lambda place: None
) -> int:
    """Kill a command before its steps, run it again, and compare with a run that nobody disturbed.

    Args:
        name: A key of ``COMMANDS``.
        folder: To work in.
        every: Take each so-manieth step only.
        between: Called with the folder of runs between the kill and the next run.

    Returns:
        How many runs were killed.
    """
    base = prepared(name, folder / "base")
    command, place = COMMANDS[name], folder / "place"
    shutil.copytree(base, place)
    with steps() as taken:
        command.run(place)
    undisturbed = tree(place)
    killed = 0
    for at in range(0, len(taken), every):
        shutil.rmtree(place)
        shutil.copytree(base, place)
        assert kill(lambda: command.run(place), at), taken[at]
        between(place)
        command.run(place)
        assert tree(place) == undisturbed, (name, at, taken[at])
        killed += 1
    return killed


def several_at_a_time(name: str, folder: Path, *, processes: int = 3, kill_first_at: int | None = None) -> None:
    """Run a command in several processes at a time, one of them killed on the way, and compare with one run alone."""
    base = prepared(name, folder / "base")
    command, place = COMMANDS[name], folder / "place"
    shutil.copytree(base, place)
    command.run(place)
    undisturbed = tree(place)
    shutil.rmtree(place)
    shutil.copytree(base, place)
    children = [fork(lambda: command.run(place, beside_others=True)) for _ in range(processes - 1)]
    if kill_first_at is None:
        command.run(place, beside_others=True)
    else:
        kill(lambda: command.run(place, beside_others=True), kill_first_at)
    assert [wait(child) for child in children] == [0] * len(children)
    command.run(place, beside_others=True)
    assert tree(place) == undisturbed, name
