"""Attacks that TrojanZoo stored become records: their files say most, the user says where the mark is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import bench, refused
from zoo_attacks import COUNT, STEM, TARGET, images, stored

from clp_plugin import evaluate, open_record
from clp_plugin.adapters.trojanzoo.models import NETWORKS
from clp_plugin.networks.architectures import build_model


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("trojanzoo"))


def record(attack: Path, root: Path, *more: object) -> tuple[object, ...]:
    given = ("record", "--toolbox", "trojanzoo", "--checkpoint", attack, "--images", root / "test.npz")
    return (*given, "--out", root / "record", *more)


def test_mark_target_network_and_normalization_come_from_its_files(attack: Path, tmp_path: Path) -> None:
    pixels = images(tmp_path)
    assert bench(*record(attack, tmp_path, "--at", "5,7")).code == 0  # column 5, row 7
    found = open_record(tmp_path / "record")
    mean, std = ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
    assert (found.target.target, found.provenance.mean, found.provenance.std) == (TARGET, mean, std)
    origin = found.provenance
    assert (origin.toolbox, origin.attack, origin.dataset, origin.architecture) == (
        "trojanzoo", "badnet", "cifar10", "trojanzoo:resnet18_comp",
    )  # fmt: skip
    expected = pixels[found.triggered.clean_index].astype(np.float64)
    for column, opacity in ((5, 0.5), (8, 0.25)):  # the mark's own opacity, by that of its name
        expected[:, :, 7:10, column] += opacity * (255 - expected[:, :, 7:10, column])
    (batch,) = found.triggered.images.batches(COUNT)
    levels = (batch.numpy() * np.reshape(std, (1, 3, 1, 1)) + np.reshape(mean, (1, 3, 1, 1))) * 255
    assert np.abs(levels - expected).max() < 0.51
    assert evaluate(found.model, found).n_triggered == COUNT - COUNT // 4  # the target's own images do not count


def test_a_record_can_be_moved_with_its_copies(attack: Path, tmp_path: Path) -> None:
    images(tmp_path)
    assert bench(*record(attack, tmp_path, "--at", "0,0", "--copy")).code == 0
    before = evaluate(open_record(tmp_path / "record").model, open_record(tmp_path / "record"))
    moved = (tmp_path / "record").rename(tmp_path / "moved")
    (tmp_path / "test.npz").unlink()
    assert evaluate(open_record(moved).model, open_record(moved)) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "does not say where the mark is: give --at X,Y with X its --mark_width_offset"),
        (("--at", "0,0", "--target", "1"), "--target 1: square_white_tar2_alpha0.50_mark(3,4).pth says 2"),
        (("--at", "29,0"), "leaves images of 32x32"),
    ],
)
def test_what_the_files_do_not_say_is_asked_for(
    attack: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    images(tmp_path)
    assert message in refused(*record(attack, tmp_path, *more))
    assert not (tmp_path / "record").exists()


def test_an_unknown_data_set_s_normalization_is_asked_for(tmp_path: Path) -> None:
    images(tmp_path)
    given = record(stored(tmp_path, dataset="mine"), tmp_path, "--at", "0,0")
    assert "how the network normalizes images of mine is not in its file" in refused(*given)
    assert bench(*given, "--mean", "0.5", "--std", "0.25", "--json").json["n_triggered"] == 9


def test_a_mark_that_moves_and_a_file_that_is_no_attack_are_refused(tmp_path: Path) -> None:
    images(tmp_path)
    moving = stored(tmp_path, stem=f"randompos_{STEM}")
    assert "a place of its own on each image" in refused(*record(moving, tmp_path, "--at", "0,0"))
    torch.save({}, tmp_path / "other.pth")
    assert "beside an .npy of the same name" in refused(*record(tmp_path / "other.pth", tmp_path, "--at", "0,0"))


@pytest.mark.skipif(find_spec("trojanvision") is None, reason="needs the extra trojanzoo")
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS[:4])
def test_networks_are_those_of_trojanzoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pytest"])
    from clp_plugin.adapters.trojanzoo.importing import trojanvision

    resnet = trojanvision().models.class_dict["resnet"]
    theirs = resnet(name=name, data_shape=[3, 32, 32], num_classes=5, norm_par=None)._model.eval()
    ours = build_model(f"trojanzoo:{name}", num_classes=5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
