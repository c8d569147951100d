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

from clp_plugin.files.checkpoints import save_weights
from clp_plugin.masking.apply import load_mask
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
        assert f"{option[0]} has no meaning without --u auto" in refused("scan", infected, *option)
    assert "--mean has no meaning for a record" in refused("scan", infected, "--u", "auto", "--mean", "0.5")
    assert "std: expected positive numbers" in refused(
        "scan", *checkpoint(tmp_path, backdoor=True), "--u", "auto", "--std", "0"
    )
    assert "--seed has no meaning without --u auto" in refused("sweep", "--record", record, "--seed", "1")
    oracle = refused("defend", "--record", infected, "--u", "auto", "--protocol", "oracle", "--out", tmp_path / "o")
    assert "clp chooses no parameter by results" in oracle
