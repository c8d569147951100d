"""backdoor-toolbox: its poisoned sets as records, its silent failures as errors, CLP beside its scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boxed_checkouts
import numpy as np
import pytest
import torch
from boxed_checkouts import ALPHA, TARGET, checkout, poisoned_set
from command_line import bench, refused
from PIL import Image

from clp_plugin import open_record
from clp_plugin.adapters.backdoor_toolbox.plugin_script import main
from clp_plugin.errors import RecordError
from clp_plugin.types import ImageSet

BADNET = "badnet_0.100_poison_seed=0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return checkout(tmp_path / "toolbox")


def grey_levels(images: ImageSet) -> np.ndarray:  # type: ignore[type-arg]
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)))
    return np.concatenate([batch.numpy() for batch in images.batches(7)]) * std * 255 + mean * 255


def test_a_patch_covers_where_its_picture_is_not_black_and_the_target_is_the_configuration_s(root: Path) -> None:
    record = open_record(poisoned_set(root, BADNET))
    pixels = boxed_checkouts.test_images(root)
    others = np.arange(20) % 10 != TARGET
    expected = pixels[others].copy()
    expected[:, :, -3:, -3:] = np.reshape([0, 200, 0], (1, 3, 1, 1))  # one channel shows, all three are covered
    assert record.target.target == TARGET
    assert np.allclose(grey_levels(record.clean), pixels, atol=1e-3)
    assert np.allclose(grey_levels(record.triggered.images), expected, atol=1e-3)
    assert (len(record.clean), len(record.benign)) == (20, 6)
    origin = record.provenance
    assert (origin.toolbox, origin.attack, origin.dataset, origin.poison_rate) == (
        "backdoor_toolbox", "badnet", "cifar10", 0.1,
    )  # fmt: skip


def test_a_mask_of_its_own_wins_by_its_first_channel(root: Path) -> None:
    mask = np.zeros((32, 32, 3), dtype=np.uint8)
    mask[0, 0] = (255, 0, 0)
    Image.fromarray(mask).save(root / "triggers" / "mask_patch.png")
    record = open_record(poisoned_set(root, BADNET))
    expected = boxed_checkouts.test_images(root)[record.triggered.clean_index]
    expected[:, :, 0, 0] = 0  # black, but covered
    assert np.allclose(grey_levels(record.triggered.images), expected, atol=1e-3)


def test_a_blend_takes_its_share_and_its_trigger_from_the_name(root: Path) -> None:
    record = open_record(poisoned_set(root, f"blend_0.050_alpha={ALPHA:.3f}_trigger=kitty.png_poison_seed=7"))
    kitty = np.asarray(Image.open(root / "triggers" / "kitty.png")).transpose(2, 0, 1)
    clean = boxed_checkouts.test_images(root)[record.triggered.clean_index]
    assert np.abs(grey_levels(record.triggered.images) - ((1 - ALPHA) * clean + ALPHA * kitty)).max() < 0.51
    assert (record.provenance.poison_rate, record.provenance.seed) == (0.05, 7)


def test_all_to_all_counts_every_image(root: Path) -> None:
    record = open_record(poisoned_set(root, "badnet_all_to_all_0.100_poison_seed=0"))
    assert len(record.triggered.clean_index) == 20
    assert record.target.wanted(np.array([9])) == 0


def lose_network(root: Path, folder: Path) -> None:
    (folder / "full_base_aug_seed=2333.pt").unlink()


def second_network(root: Path, folder: Path) -> None:
    shutil.copy(folder / "full_base_aug_seed=2333.pt", folder / "full_base_no_aug_seed=2333.pt")


def lose_image(root: Path, folder: Path) -> None:
    (root / "clean_set/cifar10/test_split/data/4.png").unlink()


def lose_split(root: Path, folder: Path) -> None:
    (root / "clean_set/cifar10/clean_split/clean_labels").unlink()


def lose_trigger(root: Path, folder: Path) -> None:
    (root / "triggers/patch.png").unlink()


def other_network(root: Path, folder: Path) -> None:
    config = root / "config.py"
    config.write_text(config.read_text().replace("resnet.ResNet18", "vgg.vgg16_bn"))


def other_weights(root: Path, folder: Path) -> None:
    torch.save({"some.weight": torch.zeros(1)}, folder / "full_base_aug_seed=2333.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_network, "found none; train it"),
        (second_network, "found full_base_aug_seed=2333.pt, full_base_no_aug_seed=2333.pt; keep one"),
        (lose_image, "1 of 20 images are missing; the first is"),
        (lose_split, "clean_labels is missing; make the split with create_clean_set.py"),
        (lose_trigger, "patch.png"),
        (other_network, "arch['cifar10'] is vgg.vgg16_bn"),
        (other_weights, "full_base_aug_seed=2333.pt as builtin:resnet18: weights do not fit"),
    ],
)
def test_what_the_toolbox_passes_over_in_silence_is_an_error(
    root: Path, damage: Callable[[Path, Path], None], message: str
) -> None:
    folder = poisoned_set(root, BADNET)
    damage(root, folder)
    assert message in refused("defend", "--record", folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SIG_0.100_poison_seed=0", "the trigger of SIG is no picture"),
        ("mine", "keep the toolbox's own names"),
        ("blend_0.100_poison_seed=0", "expected alpha in the name"),
    ],
)
def test_sets_that_cannot_be_read_say_why(root: Path, name: str, message: str) -> None:
    with pytest.raises(RecordError, match=re.escape(message)):
        open_record(poisoned_set(root, name))


def test_a_set_outside_its_checkout_is_refused(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(poisoned_set(root, BADNET), tmp_path / BADNET)
    with pytest.raises(RecordError, match="expected it in its checkout"):
        open_record(Path(moved))


def test_its_script_repairs_what_bench_defend_repairs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = poisoned_set(root, BADNET)
    given = ["-dataset", "cifar10", "-poison_type", "badnet", "-poison_rate", "0.1", "-u", "2", "-device", "cpu"]
    assert main(given, checkout=str(root)) == 0
    printed = capsys.readouterr()
    found = bench("defend", "--record", "cifar10/" + BADNET, "--toolbox", "backdoor_toolbox", "--root", root, "--u", "2",
                  "--device", "cpu", "--json").json  # fmt: skip
    right, fired = round(found["after"]["acc"] * 20), round(found["after"]["asr"] * 18)
    assert f"after: Clean ACC: {right}/20, ASR: {fired}/18" in printed.out + printed.err
    repaired = torch.load(folder / "defended_CLP_full_base_aug_seed=2333.pt", weights_only=True)
    attacked = torch.load(folder / "full_base_aug_seed=2333.pt", weights_only=True)
    assert list(repaired) == list(attacked)
    assert main([*given, "-alpha", "0.5"], checkout=str(root)) == 2
    assert "no set of these options" in capsys.readouterr().err


def test_registering_writes_one_file_that_starts(root: Path) -> None:
    written = bench("toolbox", "register", "backdoor_toolbox", "--root", root, "--json").json["written"]
    assert written == [str(root / "clp_plugin_defense.py")]
    done = subprocess.run([sys.executable, written[0], "--help"], capture_output=True, text=True, check=False)
    assert "-poison_type" in done.stdout, done.stderr
    bench("toolbox", "register", "backdoor_toolbox", "--root", root, "--remove")
    assert not Path(written[0]).exists()


def test_what_starts_is_told_and_that_defenses_that_we_do_not_run_need_a_gpu(root: Path) -> None:
    (root / "poison_tool_box" / "badnet.py").write_text("")
    for name in ("ANP", "SEAM"):
        (root / "other_defenses_tool_box" / f"{name}.py").write_text("")
    (root / "other_defenses_tool_box" / "frequency.py").write_text("import package_that_nobody_has\n")
    found = bench("toolbox", "check", "backdoor_toolbox", "--root", root, "--json").json
    problems = {each["name"]: each["problem"] for each in found["scripts"]}
    assert problems["badnet"] == problems["ANP"] == ""
    assert problems["frequency"] == "ModuleNotFoundError: No module named 'package_that_nobody_has'"
    assert bool(problems["SEAM"]) is not torch.cuda.is_available()
    assert found["registered"] is False
