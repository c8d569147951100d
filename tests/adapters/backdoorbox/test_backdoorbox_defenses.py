"""BackdoorBox's own repairs on its records, in a process of their own: run, read back, refused where they would do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from boxed_attacks import BadNets, core_checkout, experiment
from command_line import bench, refused
from fake_checkout import content
from own_parts import own_parts

from clp_plugin.adapters.backdoorbox import save_record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return core_checkout(tmp_path / "box")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path / "data"))
    parts = own_parts(tmp_path / "parts")
    return save_record(BadNets(parts), experiment(tmp_path / "experiments", parts), arch=parts.arch, n_benign=6)


def test_a_pruned_network_is_read_back_with_its_mask_and_its_own_numbers_are_ours(root: Path, folder: Path) -> None:
    before = content(folder)
    given = (
        "defend",
        "--record",
        folder,
        "--impl",
        "toolbox",
        "--method",
        "Pruning",
        "--root",
        root,
        "--device",
        "cpu",
    )
    options = ("--option", "batch_size=6", "--option", "layer=bn")
    found = bench(*given, *options, "--json").json
    assert (found["before"]["asr"], found["after"]["asr"]) == (1, 0)  # the masked channel carries the trigger
    assert found["after"]["acc"] == 1
    after = content(folder)
    assert {name: after[name] for name in before} == before
    log = (folder / "defense" / "Pruning" / "clp_plugin_run.log").read_text()
    assert "sees 6" in log
    again = bench(*given, "--reuse", "--json").json
    assert (again["after"], again["budget"]) == (found["after"], "benign:6")
    assert "holds an earlier result" in refused(*given, *options)
    assert sorted(content(root)) == sorted(content(core_checkout(root.parent / "other")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("Pruning",), "all 6 benign images"),
        (("ABL",), "unknown defense"),
        (("NAD", "--option", "rate=1"), "BackdoorBox's NAD: unknown option"),
    ],
)
def test_what_would_do_nothing_or_is_unknown_is_refused(
    root: Path, folder: Path, more: tuple[str, ...], message: str
) -> None:
    given = ("defend", "--record", folder, "--impl", "toolbox", "--root", root, "--device", "cpu", "--method", *more)
    assert message in refused(*given)
    assert not (folder / "defense").exists()
