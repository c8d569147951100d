"""What every adapter must do, ours and the one that docs/adapters.md shows a stranger."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from backdoorbench_trees import write_record
from boxed_attacks import BadNets, experiment
from boxed_checkouts import checkout, poisoned_set
from command_line import bench
from fake_checkout import content
from grids import tiny_record
from own_parts import own_parts
from zoo_attacks import images, stored

from clp_plugin.adapters.backdoorbox import save_record
from clp_plugin.errors import ClpError
from clp_plugin.evaluation.metrics import evaluate
from clp_plugin.records.adapter import NamesItsFiles, ReadsRecords
from clp_plugin.records.opening import find_adapter, load_adapter
from clp_plugin.registry import Catalogue, load_catalogue
from clp_plugin.types import Record

DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True)
class Made:
    """A record of a toolbox, and a file in it without which it cannot be opened."""

    toolbox: str
    path: Path
    needed: str
    registry: Path | None = None

    @property
    def catalogue(self) -> Catalogue:
        return load_catalogue(self.registry)

    @property
    def adapter(self) -> ReadsRecords:
        return load_adapter(self.catalogue, self.toolbox)


def builtin(place: Path) -> Made:
    return Made("builtin", tiny_record(place / "runs" / "first"), "model.safetensors")


def parts(place: Path) -> Made:
    mine = own_parts(place / "parts")
    done = bench(
        "record", "--checkpoint", mine.checkpoint, "--arch", mine.arch, "--images", mine.images, "--trigger", mine.trigger,
        "--at", "bottom-right", "--target", "0", "--copy", "--out", place / "runs" / "first",
    )  # fmt: skip
    assert done.code == 0, done.err
    return Made("parts", place / "runs" / "first", "checkpoint.pth")


def backdoorbox(place: Path) -> Made:
    mine = own_parts(place / "parts")
    folder = save_record(BadNets(mine), experiment(place / "experiments", mine), arch=mine.arch)
    return Made("backdoorbox", folder, "ckpt_epoch_10.pth")


def backdoor_toolbox(place: Path) -> Made:
    folder = poisoned_set(checkout(place), "badnet_0.100_poison_seed=0")
    return Made("backdoor_toolbox", folder, "full_base_aug_seed=2333.pt")


def trojanzoo(place: Path) -> Made:
    attack = stored(place)
    images(place)
    done = bench(
        "record", "--toolbox", "trojanzoo", "--checkpoint", attack, "--images", place / "test.npz", "--at", "0,0", "--copy",
        "--out", place / "runs" / "record",
    )  # fmt: skip
    assert done.code == 0, done.err
    return Made("trojanzoo", place / "runs" / "record", "checkpoint.pth")


def backdoorbench(place: Path) -> Made:
    return Made("backdoorbench", write_record(place / "bench", "first").folder, "attack_result.pt")


def minibench(place: Path) -> Made:
    """The example of the docs, taken from there."""
    text = (DOCS / "adapters.md").read_text(encoding="utf-8")
    blocks = dict(reversed(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)))
    place.mkdir(exist_ok=True)
    (place / "minibench.py").write_text(blocks["python"])
    (place / "minibench.yaml").write_text(blocks["yaml"])
    path = place / "runs" / "first"
    path.mkdir(parents=True)
    run = {
        "network": "squeezenet1_1", "classes": 4, "target": 1, "attack": "patch", "dataset": "noise", "poison_rate": 0.1,
        "seed": 0, "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(run))
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=4).state_dict(), path / "net.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    triggered = pixels.copy()
    triggered[:, :, -3:, -3:] = 255
    np.savez(path / "test.npz", x=pixels, y=np.arange(12) % 4, x_triggered=triggered)
    return Made("minibench", path, "net.pt", place / "minibench.yaml")


TOOLBOXES = {
    make.__name__: make for make in (builtin, parts, backdoorbench, backdoorbox, backdoor_toolbox, trojanzoo, minibench)
}


@pytest.fixture(params=TOOLBOXES, scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    if request.param == "minibench" and not DOCS.is_dir():
        pytest.skip("needs the checkout's docs")
    make: Callable[[Path], Made] = TOOLBOXES[request.param]
    return make(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def record(made: Made) -> Record:
    return made.adapter.open(made.path)


def test_it_knows_its_own_records_and_no_others(made: Made, tmp_path: Path) -> None:
    assert made.adapter.sniff(made.path)
    assert not made.adapter.sniff(tmp_path)
    found = find_adapter(made.path, toolbox=None, catalogue=made.catalogue)
    assert type(found).__qualname__ == type(made.adapter).__qualname__


def test_it_says_by_what_it_knows_them(made: Made) -> None:
    assert not isinstance(made.adapter, NamesItsFiles) or made.adapter.looks_for


def test_its_records_are_listed_with_those_that_are_incomplete(made: Made) -> None:
    [listed] = [each for each in made.adapter.records(made.path.parent) if each.path == made.path]
    assert listed.complete
    assert listed.summary


def test_a_record_says_where_it_comes_from(made: Made, record: Record) -> None:
    assert (record.provenance.toolbox, record.provenance.path) == (made.toolbox, str(made.path))
    assert re.fullmatch("[0-9a-f]{64}", record.provenance.sha256)


def test_a_record_can_be_judged(record: Record) -> None:
    found = evaluate(record.model, record)
    assert found.n_clean == len(record.clean)
    assert 0 < found.n_triggered <= found.n_clean
    assert not record.model.training


def test_triggered_images_are_of_clean_ones_that_the_attacker_wants_elsewhere(record: Record) -> None:
    twins = record.triggered.clean_index
    true = np.asarray(record.clean.labels)[twins]
    assert (record.target.wanted(true) != true).all()
    assert len(set(twins.tolist())) == len(twins)


def test_opening_again_gives_the_same_and_writes_nothing(made: Made, record: Record) -> None:
    before = content(made.path)
    again = made.adapter.open(made.path)
    assert content(made.path) == before
    assert again.provenance == record.provenance
    assert evaluate(again.model, again) == evaluate(record.model, record)


def test_a_record_that_lost_a_file_is_refused_by_its_name(made: Made, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(made.path, tmp_path / "first"))
    (broken / made.needed).unlink()
    with pytest.raises(ClpError, match=re.escape(made.needed)):
        made.adapter.open(broken)


def test_weights_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(made.path, tmp_path / "first"))
    file = broken / made.needed
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ClpError, match="first"):
        made.adapter.open(broken)


def test_a_defense_runs_on_it_through_the_command_line(made: Made, record: Record, tmp_path: Path) -> None:
    registry = () if made.registry is None else ("--registry", made.registry)
    given = ("--record", made.path, "--device", "cpu", "--out", tmp_path / "out", *registry, "--json")
    found = bench("defend", *given).json
    assert found["before"]["acc"] == pytest.approx(evaluate(record.model, record).acc)
