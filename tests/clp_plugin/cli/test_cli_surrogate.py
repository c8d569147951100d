"""The commands that look for a trigger with no data, on a network whose backdoor channel was planted, and its clean twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from command_line import bench, refused, without
from planted import CHANNEL, CHECKERBOARD, LAYER, SHAPE, TARGET, Planted

from clp_plugin.files.checkpoints import load_checkpoint, save_weights
from clp_plugin.masking.apply import load_mask
from clp_plugin.networks.architectures import build_model
from clp_plugin.store.outcomes import load_outcome, load_outcomes
from clp_plugin.surrogate.images import dead_leaves

NETS = Path(planted.__file__)


def checkpoint(folder: Path, *, backdoor: bool) -> list[str]:
    """Weights of the network, and the options that say how to build it."""
    save_weights(Planted(backdoor=backdoor).state_dict(), folder / "weights.safetensors")
    return [
        str(folder / "weights.safetensors"), "--arch", f"{NETS}:Planted", "--arch-option", f"backdoor={backdoor}",
        "--input-size", ",".join(map(str, SHAPE)),
    ]  # fmt: skip


def make_record(folder: Path, *, backdoor: bool) -> Path:
    """Dead leaves with the classes that the network gives them, and the checkerboard as trigger."""
    pixels = (dead_leaves(60, SHAPE, seed=5) * 255).round().to(torch.uint8)
    with torch.no_grad():
        labels = Planted(backdoor=False)(pixels / 255).argmax(1)
    np.savez(folder / "images.npz", x=pixels.numpy(), y=labels.numpy())
    np.save(folder / "trigger.npy", CHECKERBOARD.expand(3, 3, 3).numpy())
    weights, *arch = checkpoint(folder, backdoor=backdoor)
    parts = ["--images", folder / "images.npz", "--trigger", folder / "trigger.npy", "--out", folder / "record"]
    assert bench("record", "--checkpoint", weights, *arch[:4], *parts, "--at", "4,4", "--target", TARGET).code == 0
    return folder / "record"


@pytest.fixture(scope="module")
def infected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_record(tmp_path_factory.mktemp("infected"), backdoor=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_record(tmp_path_factory.mktemp("clean"), backdoor=False)


def strict_json(path: Path) -> Any:
    """A file that has no NaN and no infinity, which are no JSON."""

    def refuse(text: str) -> None:
        raise AssertionError(text)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_defend_chooses_u_by_the_trigger_and_its_outcome_holds_the_choice(infected: Path, tmp_path: Path) -> None:
    run = bench("defend", "--record", infected, "--u", "auto", "--out", tmp_path, "--json")
    found = run.json
    assert found["options"]["u"] == "auto"
    assert found["before"]["asr"] > 0.9 > 0.2 > found["after"]["asr"]
    assert found["after"]["acc"] == 1.0  # the classes of the clean twin
    outcome = load_outcome(Path(found["outcome"]))
    assert outcome.mask is not None
    assert outcome.mask[LAYER]["pruned"] == [CHANNEL]
    log = outcome.log
    assert (log["accepted"], log["target"], log["success"]) == (True, TARGET, 0.0)
    assert f"u = {log['u']:g} leaves it 0%" in log["finding"]
    (chosen,) = (one for one in log["curve"] if one["u"] == log["u"])
    assert chosen == {key: log.get(key, 1) for key in ("pruned", "success", "agreement", "u")}
    assert log["curve"][0]["u"] is None
    assert log["curve"][0]["success"] == log["patch"]["success"] >= 0.8


def test_on_a_clean_network_no_u_is_chosen_and_that_is_no_number(clean: Path, tmp_path: Path) -> None:
    run = bench("defend", "--record", clean, "--u", "auto", "--out", tmp_path)
    assert run.code == 0
    assert "no surrogate trigger of backdoor-like strength" in run.err
    stored = strict_json(tmp_path / "outcome.json")
    assert stored["log"]["u"] is None
    assert not stored["log"]["accepted"]
    assert stored["log"]["finding"].endswith("nothing is pruned")
    assert sum(len(layer["pruned"]) for layer in stored["mask"].values()) == 0
    assert stored["before"] == stored["after"]


def test_sweep_measures_the_chosen_u_beside_the_usual_ones(infected: Path, clean: Path, tmp_path: Path) -> None:
    found = bench("sweep", "--record", infected, "--u", "auto", "--out", tmp_path / "infected", "--json").json
    u = found["surrogate"]["u"]
    values = [row["u"] for row in found["rows"]]
    assert values == sorted({u, *(i / 2 for i in range(21))})
    (row,) = (row for row in found["rows"] if row["u"] == u)
    assert (row["pruned"], row["asr"] < 0.2) == (1, True)
    none = bench("sweep", "--record", clean, "--u", "auto", "--out", tmp_path / "clean", "--json").json
    assert none["surrogate"]["u"] is None
    assert [row["u"] for row in none["rows"]] == [i / 2 for i in range(21)]


def test_scan_chooses_u_behind_the_normalization_that_is_told(infected: Path, tmp_path: Path) -> None:
    record = bench("scan", infected, "--u", "auto", "--json").json
    plain = bench(
        "scan", *checkpoint(tmp_path, backdoor=True), "--u", "auto", "--out", tmp_path / "scan", "--json"
    ).json
    assert plain["surrogate"] == record["surrogate"]  # by default pixels in [0, 1], as the record says
    assert plain["u"] == plain["surrogate"]["u"]
    assert [layer["pruned"] for layer in plain["layers"] if layer["name"] == LAYER] == [[CHANNEL]]
    assert load_mask(tmp_path / "scan" / "mask.json").indices() == {LAYER: [CHANNEL]}
    # Behind this normalization a pixel of 1 is a tenth of what the channel listens for.
    narrow = ["--mean", "0,0,0", "--std", "10", "--seed", "3"]
    other = bench("scan", *checkpoint(tmp_path, backdoor=True), "--u", "auto", *narrow, "--json").json
    assert other["u"] is None
    assert all(layer["pruned"] == [] for layer in other["layers"])


def test_a_grids_cell_with_a_chosen_u_is_stable_and_known_by_its_seed(infected: Path, tmp_path: Path) -> None:
    def grid(out: Path, seeds: str) -> list[dict[str, Any]]:
        command = ["leaderboard", "run", "--record", infected, "--method", "clp:u=auto", "--workers", "0"]
        assert bench(*command, "--seeds", seeds, "--out", out).code == 0
        read = sorted(load_outcomes(out), key=lambda one: one.seed or 0)
        return [without(one.model_dump(mode="json"), "seconds", "created", "command") for one in read]

    both = grid(tmp_path / "one", "0,1")
    assert [one["seed"] for one in both] == [0, 1]
    assert [one["options"]["u"] for one in both] == ["auto"] * 2
    assert both[0]["log"]["losses"] != both[1]["log"]["losses"]
    (again,) = grid(tmp_path / "other", "0")
    for one in (again, both[0]):
        del one["log"]["seconds_score"]
    assert again == both[0]


def test_what_has_no_meaning_beside_a_chosen_u_is_refused(infected: Path, record: Path, tmp_path: Path) -> None:
    assert "expected a number such as 2.5, or auto; found 'two'" in refused("scan", infected, "--u", "two")
    for option in (["--seed", "1"], ["--mean", "0.5"], ["--std", "0.5"], ["--device", "cpu"]):
        assert f"{option[0]} has no meaning without --surrogate or --u auto" in refused("scan", infected, *option)
    assert "--mean has no meaning for a record" in refused("scan", infected, "--u", "auto", "--mean", "0.5")
    assert "std: expected positive numbers" in refused(
        "scan", *checkpoint(tmp_path, backdoor=True), "--u", "auto", "--std", "0"
    )
    assert "--seed has no meaning without --u auto" in refused("sweep", "--record", record, "--seed", "1")
    oracle = refused("defend", "--record", infected, "--u", "auto", "--protocol", "oracle", "--out", tmp_path / "o")
    assert "clp chooses no parameter by results" in oracle


def test_scan_shows_the_trigger_the_channels_and_the_repair(tmp_path: Path) -> None:
    command = [
        "scan",
        *checkpoint(tmp_path, backdoor=True),
        "--surrogate",
        "--repair",
        tmp_path / "repaired.safetensors",
    ]
    found = bench(*command, "--out", tmp_path / "scan", "--json").json
    told = found["surrogate"]
    assert (told["accepted"], told["target"], found["u"]) == (True, TARGET, None)
    assert min(told["losses"], key=told["losses"].__getitem__) == str(TARGET)
    assert (told["driven"][0]["layer"], told["driven"][0]["channel"]) == (LAYER, CHANNEL)
    assert told["driven"][0]["gain_over_cost"] == max(one["gain_over_cost"] for one in told["driven"])
    assert told["rounds"][0]["before"] >= 0.8 > told["rounds"][0]["after"]
    assert {p.name for p in (tmp_path / "scan").iterdir()} == {
        "scores.csv", "mask.json", "scores.png", "scores.pdf", "surrogate.npy", "surrogate.png", "surrogate.pdf"
    }  # fmt: skip
    mask = load_mask(tmp_path / "scan" / "mask.json")
    assert CHANNEL in mask.indices()[LAYER]
    assert mask.indices() == {layer["name"]: layer["pruned"] for layer in found["layers"] if layer["pruned"]}
    # An oracle that knows nothing of the search: the stored patch at its place, on other images, before and after.
    patch, (row, column) = torch.from_numpy(np.load(tmp_path / "scan" / "surrogate.npy")), told["patch"]["place"]
    images = dead_leaves(40, SHAPE, seed=31)
    shown = images.clone()
    shown[:, :, row : row + patch.shape[1], column : column + patch.shape[2]] = patch
    repaired = Planted(backdoor=True)
    repaired.load_state_dict(load_checkpoint(tmp_path / "repaired.safetensors"))
    own = Planted(backdoor=False)(images).argmax(1)
    sent = [
        (net(shown).argmax(1)[own != TARGET] == TARGET).double().mean() for net in (Planted(backdoor=True), repaired)
    ]
    assert sent[0] > 0.8 > 0.2 > sent[1]


def test_scan_says_in_words_what_it_found_and_never_that_a_network_is_infected(tmp_path: Path) -> None:
    command = ["scan", *checkpoint(tmp_path, backdoor=True), "--surrogate", "--out", tmp_path / "scan"]
    shown = bench(*command)
    assert shown.code == 0
    assert "hint of a backdoor, not validated: a patch of 3x3 sends" in shown.err
    assert "no real image was seen" in shown.err
    for title in ("easiest of 3 classes", f"channels that the patch drives to {TARGET}", "rounds of a repair"):
        assert title in shown.out
    assert "infected" not in (shown.out + shown.err).lower()
    assert "pixels in [0, 1]" in shown.err  # the normalization that was taken for granted


def test_scan_leaves_a_clean_network_as_it_is_and_gives_the_number(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path, backdoor=False)
    shown = bench("scan", *weights, "--surrogate", "--out", tmp_path / "s", "--repair", tmp_path / "same.safetensors")
    assert shown.code == 0
    assert "no surrogate trigger of backdoor-like strength: at best a patch of" in shown.err
    assert "nothing is pruned" in shown.err
    assert load_mask(tmp_path / "s" / "mask.json").indices() == {}
    before, after = (load_checkpoint(path) for path in (Path(weights[0]), tmp_path / "same.safetensors"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_a_trigger_decides_is_not_also_decided_by_u(tmp_path: Path) -> None:
    for option in (["--u", "2"], ["--layers", "fused"], ["--parity"]):
        wrong = refused("scan", *checkpoint(tmp_path, backdoor=True), "--surrogate", *option)
        assert f"{option[0]} has no meaning with --surrogate" in wrong


def test_a_network_that_no_trigger_can_be_sought_in_is_refused_in_one_line(tmp_path: Path) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(
        "from torch import nn\n\n"
        "def bare():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 4))\n\n"
        "def tiny():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 4))\n"
    )
    for name, size, why in (("bare", 16, "BatchNorm that keeps running statistics"), ("tiny", 5, "6x6 pixels or more")):
        save_weights(build_model(f"{nets}:{name}", num_classes=4).state_dict(), tmp_path / f"{name}.safetensors")
        command = [
            "scan",
            tmp_path / f"{name}.safetensors",
            "--arch",
            f"{nets}:{name}",
            "--input-size",
            f"3,{size},{size}",
        ]
        for rule in (["--surrogate"], ["--u", "auto"]):
            assert why in refused(*command, *rule)
