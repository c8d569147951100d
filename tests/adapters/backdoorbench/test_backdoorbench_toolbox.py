"""Driving the toolbox's own scripts: what they are given, what becomes of their results, and that nothing else changes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_checkout import MODEL, but, content, fake_attack_record, fake_checkout, run_defense, write
from processes import gone

from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.errors import ConfigError, RecordError, ToolboxError
from clp_plugin.records.exchange import RunRequest, ToolboxResult

pytestmark = pytest.mark.usefixtures("temporary")
LOG = "clp_plugin_run.log"


def seen(result: ToolboxResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.folder / "log" / "seen.json").read_text())
    return found


def test_a_result_appears_whole_and_nothing_else_changes(root: Path, record: Path, temporary: Path) -> None:
    before = content(root)
    result = run_defense(record)
    after = content(root)
    new = {name.removeprefix("record/eins/defense/ft/") for name in after.keys() - before.keys()}
    assert new == {"defense_result.pt", "ft_df_summary.csv", "log/seen.json", LOG}
    assert but(after, "record/eins/defense/") == before
    assert list(temporary.iterdir()) == []
    assert result.folder == record / "defense" / "ft"
    made = torch.load(root / "resource" / "made.pt", weights_only=True)["model"]
    assert all(torch.equal(value, made[key]) for key, value in result.model.state_dict().items())
    assert (result.reported, result.budget, result.oracle) == (
        {"acc": 0.5, "asr": 0.25, "ra": 0.125}, "benign:5 % of the training images", "",
    )  # fmt: skip
    assert result.seconds > 0
    assert result.commit == ""
    assert result.log == result.folder / LOG
    lines = result.log.read_text().splitlines()
    assert lines == [f"working in {seen(result)['cwd']}", "done"]
    assert not Path(seen(result)["cwd"]).exists()
    assert Path(seen(result)["cwd"]).is_relative_to(temporary)


def test_a_result_goes_where_the_request_says_and_the_checkout_stays_as_it_is(
    root: Path, record: Path, tmp_path: Path
) -> None:
    before, place = content(root), tmp_path / "elsewhere" / "ft-seed0"
    result = BackdoorBench().run_defense(record, "ft", RunRequest(destination=place))
    assert content(root) == before
    assert result.folder == place
    assert {name.name for name in place.iterdir()} == {"defense_result.pt", "ft_df_summary.csv", "log", LOG}


def test_a_script_that_writes_into_its_own_copy_of_the_record_does_not_reach_the_record(record: Path) -> None:
    before = (record / "attack_result.pt").read_bytes()
    run_defense(record, do="overwrite")
    assert (record / "attack_result.pt").read_bytes() == before


def test_the_script_finds_what_it_looks_for_and_nothing_that_it_should_not(root: Path, record: Path) -> None:
    run_defense(record, "ft-sam")
    found = seen(run_defense(record))
    assert found["image"] == "image 0"
    assert found["data"] == ["cifar-10-batches-py"]
    assert found["weights"] == (record / "attack_result.pt").stat().st_size
    assert found["earlier"] == ["ft"], "an earlier result of another defense is none of its business"
    assert found["beside"] == ["toolbox"], "scripts have .. on their search path"
    assert {"attack", "defense", "utils", "config", "resource", "data", "record"} <= set(found["home"])


@pytest.mark.parametrize(
    ("place", "data_path"),
    [
        ("bench", "./data/cifar10"),
        ("recordings of data/Bänke ü", "./data/cifar10"),
        ("bench", "/mnt/database/data/cifar10"),
        ("bench", "../elsewhere/data/cifar10"),
        ("bench", "data/cifar10/"),
    ],
)
def test_a_record_that_was_renamed_and_lies_in_an_odd_place_still_works(
    tmp_path: Path, place: str, data_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script re-roots as the toolbox does: at the first ``record`` of its own path and the first ``data`` of the stored."""
    stored = "record of data"
    root = fake_checkout(tmp_path / place, stored=stored, data_path=data_path)
    record = fake_attack_record(root / "record" / "umbenannt é", stored=stored, data_path=data_path)
    monkeypatch.chdir(record.parent)
    found = seen(run_defense(Path(record.name)))
    assert (found["image"], found["data"]) == ("image 0", ["cifar-10-batches-py"])
    assert found["args"]["result_file"] == stored


def test_temporary_folders_named_record_are_avoided(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = tmp_path / "my-records"
    unlucky.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unlucky))
    found = seen(run_defense(record))
    assert found["image"] == "image 0"
    assert "record" not in found["cwd"]


def test_a_record_outside_the_checkout_runs_with_the_data_of_the_checkout(root: Path, tmp_path: Path) -> None:
    record = fake_attack_record(tmp_path / "copied" / "eins")
    found = BackdoorBench().run_defense(record, "ft", RunRequest(root=root))
    assert found.folder == record / "defense" / "ft"
    assert seen(found)["data"] == ["cifar-10-batches-py"]


def test_an_earlier_result_stays_unless_it_may_be_replaced(root: Path, record: Path) -> None:
    old = write(record / "defense" / "ft" / "old.txt", "last week's")
    before = content(root)
    with pytest.raises(ConfigError, match="holds an earlier result; give --reuse to measure it, or --force"):
        run_defense(record)
    assert content(root) == before
    run_defense(record, force=True)
    assert not old.exists()
    assert (record / "defense" / "ft" / "defense_result.pt").is_file()
    assert [path.name for path in (record / "defense").iterdir()] == ["ft"]


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("crash", r"defense/ft\.py failed \(exit status 1\): ValueError: the loss is not a number; its output is in "),
        ("leave nothing", r"no defense_result\.pt: the defense crashed"),
        ("leave an empty result", "is empty: the defense crashed"),
    ],
)
def test_a_run_that_fails_keeps_the_earlier_result_and_its_log(root: Path, record: Path, do: str, said: str) -> None:
    write(record / "defense" / "ft" / "old.txt", "last week's")
    before = content(root)
    with pytest.raises(ToolboxError, match=said):
        run_defense(record, force=True, do=do)
    after = content(root)
    log = record / "clp_plugin_logs" / f"ft-{os.getpid()}.log"
    assert but(after, str(log.relative_to(root))) == before
    assert log.read_text().startswith("working in ")
    run_defense(record, force=True)
    assert not log.parent.exists(), "the log of the run that ended well lies with its result"


def test_the_time_limit_leaves_the_record_as_it_was(root: Path, record: Path, temporary: Path) -> None:
    before = content(root)
    with pytest.raises(ToolboxError, match=r"defense/ft\.py was stopped after the time limit of 2 s"):
        BackdoorBench().run_defense(record, "ft", RunRequest({"do": "hang"}, time_limit=2))
    assert but(content(root), "record/eins/clp_plugin_logs/") == before
    assert list(temporary.iterdir()) == []


DRIVER = """
import sys
from types import SimpleNamespace
from torchvision.datasets import cifar
from clp_plugin.adapters.backdoorbench import toolbox_facts
from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.cli.app import main
toolbox_facts.LAUNCHER, cifar.check_integrity = "direct", lambda *_: True
origin = SimpleNamespace(toolbox="backdoorbench")
# Not of the made-up record itself: no network fits its weights.
BackdoorBench.open = lambda self, path, **_: SimpleNamespace(folder=path, provenance=origin, target="target 0")
sys.argv = ["bench", "defend", "--record", sys.argv[1], "--impl", "toolbox", "--method", "ft", "--option", "do=hang", "--force"]
main()
"""


def when_written(file: Path) -> str:
    until = time.monotonic() + 20
    while (not file.is_file() or not file.read_text().endswith("}")) and time.monotonic() < until:
        time.sleep(0.01)
    return file.read_text()


@contextlib.contextmanager
def hanging(record: Path, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``bench`` while the script that it started hangs, and that script's process."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", DRIVER, str(record)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert driver.stderr is not None
    line = next(line for line in driver.stderr if line.startswith("working in "))
    noted = Path(line.removeprefix("working in ").strip()) / "record" / "eins" / "defense" / "ft" / "log" / "seen.json"
    yield driver, json.loads(when_written(noted))["pid"]
    driver.wait()
    driver.stderr.close()


def test_after_a_kill_the_script_ends_the_record_is_as_it_was_and_the_next_run_works_and_clears_up(
    root: Path, record: Path, temporary: Path
) -> None:
    write(record / "defense" / "ft" / "old.txt", "last week's")
    before = content(root)
    with hanging(record, temporary) as (driver, pid):
        with pytest.raises(ConfigError, match=r"defense/ft: another run is writing there"):
            run_defense(record, force=True)
        assert len(list(temporary.glob(".clp-plugin-*.clp-new"))) == 1, "the living one's workspace stays"
        driver.kill()
        driver.wait()
        assert gone(pid)
    assert but(content(root), "record/eins/clp_plugin_logs/", "record/eins/defense/.ft.clp-lock") == before
    assert (run_defense(record, force=True).folder / "defense_result.pt").is_file()
    assert list(temporary.iterdir()) == []
    assert [path.name for path in (record / "defense").iterdir()] == ["ft"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_stops_its_script_and_leaves_nothing_temporary(
    root: Path, record: Path, temporary: Path, number: signal.Signals
) -> None:
    before = content(root)
    with hanging(record, temporary) as (driver, pid):
        driver.send_signal(number)
        assert driver.wait(20) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert but(content(root), "record/eins/clp_plugin_logs/") == before
    assert list(temporary.iterdir()) == []


def test_the_record_says_what_the_script_is_given_not_the_toolboxs_files(record: Path) -> None:
    result = run_defense(record, "ft-sam")
    args = seen(result)["args"]
    assert {name: args[name] for name in ("dataset", "model", "device", "random_seed", "result_file")} == {
        "dataset": "cifar10", "model": MODEL, "device": "cpu", "random_seed": 0, "result_file": "eins",
    }  # fmt: skip
    assert "from: cifar10" in seen(result)["yaml"]
    assert "from: config" in seen(run_defense(record))["yaml"], "no settings for this data set"
    assert (args["amp"], args["num_workers"]) == (False, 0)
    assert result.budget == "benign:10 % of the training images"
    assert result.options["ratio"] == 0.1


def test_settings_win_over_argparse_and_the_user_over_both(record: Path) -> None:
    plain = run_defense(record, "ft-sam")
    assert seen(plain)["args"]["rho"] == 7.0, "argparse's own 2.0 would hide the file's"
    assert seen(plain)["args"]["epochs"] is None, "the script takes it from its settings by itself"
    assert (plain.options["rho"], plain.options["epochs"]) == (7, 3)
    own = run_defense(record, "ft-sam", force=True, rho=0.5, epochs=1, random_seed=9, debug=True, note="two words")
    args = seen(own)["args"]
    assert [args[name] for name in ("rho", "epochs", "random_seed", "debug", "note")] == [0.5, 1, 9, True, "two words"]
    assert own.options["rho"] == 0.5


def test_seeds_of_one_method_are_one_method(record: Path) -> None:
    one, two = (BackdoorBench().run_defense(record, "ft", RunRequest(seed=seed, force=True)) for seed in (0, 1))
    assert [seen(two)["args"]["random_seed"], dict(one.options)] == [1, dict(two.options)]
    assert run_defense(record, force=True, random_seed=9).options["random_seed"] == 9, "another than the outcome's"


def test_on_a_gpu_the_settings_decide_about_mixed_precision(record: Path) -> None:
    found = seen(BackdoorBench().run_defense(record, "ft", RunRequest(device="cuda:1", seed=4)))
    assert [found["args"][name] for name in ("device", "amp", "random_seed")] == ["cuda:1", None, 4]
    quick = seen(BackdoorBench().run_defense(record, "ft", RunRequest(force=True, fast_cpu=True, trust=True)))
    assert quick["args"]["amp"] is None
    assert quick["flags"] == ["--trust", "--fast-cpu"]


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("fft", {}, r"defense 'fft'.*ft"),
        ("ft", {"epoch": 5}, r"defense/ft\.py: .*'epoch'.*epochs"),
        ("anp", {}, f"anp knows only preactresnet18, .*; this record's model is {MODEL}"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    root: Path, record: Path, method: str, options: dict[str, object], said: str
) -> None:
    before = content(root)
    with pytest.raises(ConfigError, match=said) as caught:
        run_defense(record, method, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert content(root) == before


@pytest.mark.filterwarnings("error")
def test_the_toolboxs_own_style_worries_nobody(root: Path, record: Path) -> None:
    script = root / "defense" / "ft.py"
    script.write_text(script.read_text() + 'PATTERN = "\\s+"\n')
    assert run_defense(record).reported["acc"] == 0.5


def test_a_defense_that_needs_poisoned_training_images_says_so(root: Path) -> None:
    record = fake_attack_record(root / "record" / "zwei", model="preactresnet18")
    with pytest.raises(ConfigError, match="bnp needs poisoned training images, and this record stores none"):
        run_defense(record, "bnp")


def test_without_the_clean_images_it_says_where_to_put_them(root: Path, record: Path) -> None:
    (root / "data" / "cifar10" / "cifar-10-batches-py" / "test_batch").unlink()
    (root / "data" / "cifar10" / "cifar-10-batches-py").rmdir()
    with pytest.raises(RecordError, match=r"expected cifar10 with cifar-10-batches-py in one of: "):
        run_defense(record)


def test_a_record_is_found_by_its_name(root: Path, record: Path) -> None:
    assert BackdoorBench().locate("eins", root=root) == record
    write(root / "record" / "clp_plugin_logs" / "attack-drei.log", "crashed")
    with pytest.raises(RecordError, match=r"no record 'drei' in .*record \(found by --root\); there: eins$"):
        BackdoorBench().locate("drei", root=root)
