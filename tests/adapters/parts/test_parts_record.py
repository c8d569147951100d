"""Records from parts: made, opened, refused when a part has changed, and safe when a stranger made them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from own_parts import CLASSES, SIZE, TARGET, OwnParts, own_parts
from PIL import Image

from clp_plugin import evaluate, open_record
from clp_plugin.adapters.parts.making import draw, make_record
from clp_plugin.adapters.parts.record import PartsAdapter
from clp_plugin.adapters.parts.request import PartsRequest
from clp_plugin.errors import CheckpointError, ConfigError, RecordError
from clp_plugin.types import ImageSet


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path / "data"))


@pytest.fixture
def parts(tmp_path: Path) -> OwnParts:
    return own_parts(tmp_path / "parts")


def request_of(parts: OwnParts) -> PartsRequest:
    return PartsRequest(
        checkpoint=parts.checkpoint,
        arch=parts.arch,
        images=parts.images,
        trigger=parts.trigger,
        at="bottom-right",
        target=str(TARGET),
    )


def grey_levels(images: ImageSet) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([batch.numpy() for batch in images.batches(7)]) * 255


def test_a_record_opens_as_its_parts_and_the_attack_fires(tmp_path: Path, parts: OwnParts) -> None:
    out = tmp_path / "record"
    network = make_record(request_of(parts), out)
    assert network.taken == "net"
    record = open_record(out)
    found = evaluate(record.model, record)
    counted = parts.labels != TARGET
    assert (found.acc, found.asr, found.base_rate) == (1, 1, 0)
    assert (found.n_clean, found.n_triggered) == (20, counted.sum())
    assert np.allclose(grey_levels(record.clean), parts.pixels, atol=1e-4)
    assert np.allclose(grey_levels(record.triggered.images), parts.triggered()[counted], atol=1e-4)
    assert record.target.num_classes == CLASSES
    assert record.input_shape == (3, SIZE, SIZE)
    assert record.provenance.architecture == "network.py:Reader"


def test_the_split_is_drawn_by_the_seed_stored_and_disjoint(tmp_path: Path, parts: OwnParts) -> None:
    request = replace(request_of(parts), n_test=9, n_benign=6, seed=3)
    make_record(request, tmp_path / "a")
    make_record(request, tmp_path / "b")
    make_record(replace(request, seed=4), tmp_path / "c")
    stored = [json.loads((tmp_path / name / "parts.json").read_text()) for name in "abc"]
    assert stored[0]["test"] == stored[1]["test"] != stored[2]["test"]
    test, benign = stored[0]["test"], stored[0]["benign"]
    assert (len(test), len(benign)) == (9, 6)
    assert not set(test) & set(benign)
    record = open_record(tmp_path / "a")
    assert record.clean.labels.tolist() == parts.labels[test].tolist()
    assert record.benign.labels.tolist() == parts.labels[benign].tolist()
    with pytest.raises(ConfigError, match="20 images cannot give 15 for test"):
        draw(20, n_test=15, n_benign=6, seed=0)
    assert draw(20, n_test=None, n_benign=0, seed=0)[0].tolist() == list(range(20))


@pytest.mark.parametrize("how", ["npz", "npz of some", "files by path", "files by name"])
def test_images_that_are_triggered_already_are_paired(tmp_path: Path, parts: OwnParts, how: str) -> None:
    triggered, images = parts.triggered(), parts.images
    ready = tmp_path / "ready.npz"
    some = np.asarray([11, 4, 17, 5]) if how != "npz" else np.arange(20)
    if how == "npz":
        np.savez(ready, x=triggered)
    elif how == "npz of some":
        np.savez(ready, x=triggered[some], index=some)
    else:
        images, ready = tmp_path / "clean", tmp_path / "ready"
        for i, label in enumerate(parts.labels):
            for root, pixels in ((images, parts.pixels), (ready, triggered)):
                if root is images or i in some:
                    # By name: the attacker sorted what he made into the folder of his target.
                    folder = root / (f"class{label}" if root is images or how == "files by path" else "class2")
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels[i].transpose(1, 2, 0)).save(folder / f"{i}.png")
    plain = replace(request_of(parts), images=images, trigger=None, at=None, triggered=ready)
    make_record(plain, tmp_path / "record")
    record = open_record(tmp_path / "record")
    counted = sorted(i for i in some if parts.labels[i] != TARGET)
    assert len(record.triggered.clean_index) == len(counted)
    twins = grey_levels(record.clean)[record.triggered.clean_index]
    twins[:, :, -2:, -2:] = 255
    assert np.allclose(grey_levels(record.triggered.images), twins, atol=1e-4)
    assert evaluate(record.model, record).asr == 1


@pytest.mark.parametrize("kind", ["trigger", "triggered"])
def test_a_copied_record_needs_nothing_else(tmp_path: Path, parts: OwnParts, kind: str) -> None:
    request = replace(request_of(parts), copy=True, n_test=8, n_benign=5)
    if kind == "triggered":
        np.savez(tmp_path / "ready.npz", x=parts.triggered())
        request = replace(request, trigger=None, at=None, triggered=tmp_path / "ready.npz")
    make_record(replace(request, copy=False), tmp_path / "linked")
    linked = open_record(tmp_path / "linked")
    before = evaluate(linked.model, linked)
    make_record(request, tmp_path / "made")
    wanted = [grey_levels(part) for part in (linked.clean, linked.triggered.images, linked.benign)]
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "made").rename(tmp_path / "moved")
    record = open_record(tmp_path / "moved")
    assert evaluate(record.model, record) == before
    for found, part in zip((record.clean, record.triggered.images, record.benign), wanted, strict=True):
        assert (grey_levels(found) == part).all()
    with pytest.raises(RecordError, match="missing"):
        open_record(tmp_path / "linked")


@pytest.mark.parametrize("what", ["checkpoint", "network", "images", "trigger"])
def test_a_part_that_has_changed_is_refused(tmp_path: Path, parts: OwnParts, what: str) -> None:
    make_record(request_of(parts), tmp_path / "record")
    file: Path = getattr(parts, what)
    if what == "images":
        np.savez(file, x=parts.pixels[::-1], y=parts.labels)
    else:
        file.write_bytes(file.read_bytes() + b"\n#")
    with pytest.raises(
        RecordError, match=rf"{file.name}: expected SHA-256 .* it has changed since the record was made"
    ):
        open_record(tmp_path / "record")


def test_code_that_nobody_here_named_does_not_run(
    tmp_path: Path, parts: OwnParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    parts.network.write_text(parts.network.read_text() + f"\nopen({str(ran)!r}, 'w')\n")
    make_record(replace(request_of(parts), copy=True), tmp_path / "record")
    ran.unlink()
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path / "another machine"))
    with pytest.raises(
        CheckpointError, match=r"architecture.py, which was not given to `bench record` on this machine"
    ):
        open_record(tmp_path / "record")
    assert not ran.exists()
    record = open_record(tmp_path / "record", trust=True)
    assert evaluate(record.model, record).asr == 1
    assert ran.exists()


def test_code_is_not_run_by_another_name_either(tmp_path: Path, parts: OwnParts) -> None:
    ran = tmp_path / "ran"
    make_record(request_of(parts), tmp_path / "record")
    (tmp_path / "other.py").write_text(f"open({str(ran)!r}, 'w')\n")
    stored = json.loads((tmp_path / "record" / "parts.json").read_text())
    stored["network"] |= {"architecture": f"{tmp_path / 'other.py'}:Reader", "code": None}
    (tmp_path / "record" / "parts.json").write_text(json.dumps(stored))
    with pytest.raises(RecordError, match="names a Python file whose hash is not there"):
        open_record(tmp_path / "record")
    assert not ran.exists()


def test_the_same_record_stays_and_another_needs_force(tmp_path: Path, parts: OwnParts) -> None:
    out = tmp_path / "record"
    make_record(request_of(parts), out)
    (out / "defense").mkdir()
    make_record(request_of(parts), out)
    assert (out / "defense").is_dir()
    with pytest.raises(ConfigError, match="holds another record; give --force"):
        make_record(replace(request_of(parts), target="1"), out)
    make_record(replace(request_of(parts), target="1"), out, force=True)
    assert open_record(out).target.target == 1
    assert not (out / "defense").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="did not write"):
        make_record(request_of(parts), tmp_path / "mine", force=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "9"}, ConfigError, "target 9 is outside the 4 classes"),
        ({"trigger": None}, ConfigError, "one of --trigger .* and --triggered"),
        ({"add": True, "blend": 0.2}, ConfigError, "exclude each other"),
        ({"at": None}, ConfigError, "say where it lies"),
        ({"std": (0.0,)}, ConfigError, "positive"),
        ({"mean": (0.1, 0.2)}, ConfigError, "1 or 3"),
        ({"arch": None}, ConfigError, "--arch"),
        ({"arch": "builtin:vgg11_bn"}, CheckpointError, "--arch"),
        ({"n_benign": 20}, ConfigError, "cannot give 0 for test"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, parts: OwnParts, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_record(replace(request_of(parts), **changes), tmp_path / "record")  # type: ignore[arg-type]
    assert not (tmp_path / "record").exists()


def test_patterns_may_be_transparent_grey_arrays_or_of_another_size(tmp_path: Path, parts: OwnParts) -> None:
    def triggered(**changes: object) -> np.ndarray:  # type: ignore[type-arg]
        out = tmp_path / f"record{len(list(tmp_path.iterdir()))}"
        make_record(replace(request_of(parts), **changes), out)  # type: ignore[arg-type]
        record = open_record(out)
        assert set(np.flatnonzero(parts.labels != TARGET)) == set(record.triggered.clean_index)
        return grey_levels(record.triggered.images)

    clean = parts.pixels[parts.labels != TARGET].astype(float)
    half = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    half.putpixel((0, 0), (9, 8, 7, 255))
    half.save(tmp_path / "half.png")
    wanted = clean.copy()
    wanted[:, :, 6, 6] = (9, 8, 7)
    assert np.allclose(triggered(trigger=tmp_path / "half.png"), wanted, atol=1e-4)

    Image.new("L", (40, 40), 200).save(tmp_path / "grey.png")
    blended = np.rint(0.9 * clean + 0.1 * 200)
    assert np.allclose(triggered(trigger=tmp_path / "grey.png", blend=0.1, at=None), blended, atol=1e-4)

    step = np.random.default_rng(5).integers(-40, 40, size=(SIZE, SIZE, 3))
    added = (clean + step.transpose(2, 0, 1)).clip(0, 255)
    np.save(tmp_path / "step.npy", step.astype(np.int16))
    assert np.allclose(triggered(trigger=tmp_path / "step.npy", add=True, at=None), added, atol=1e-4)
    np.save(tmp_path / "share.npy", step / 255)
    assert np.allclose(triggered(trigger=tmp_path / "share.npy", add=True, at=None), added, atol=1e-4)
    np.save(tmp_path / "levels.npy", step.astype(float))
    with pytest.raises(ConfigError, match="expected grey levels as whole numbers"):
        triggered(trigger=tmp_path / "levels.npy", add=True, at=None)

    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[:3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    covered = clean.copy()
    covered[:, :, :3] = 200
    whole = {"trigger": tmp_path / "whole.png", "at": None}
    Image.new("L", (SIZE, SIZE), 200).save(tmp_path / "whole.png")
    assert np.allclose(triggered(**whole, trigger_mask=tmp_path / "mask.png"), covered, atol=1e-4)
    np.save(tmp_path / "mask.npy", mask > 0)
    assert np.allclose(triggered(**whole, trigger_mask=tmp_path / "mask.npy"), covered, atol=1e-4)


def test_the_size_of_mixed_files_is_the_networks(tmp_path: Path, parts: OwnParts) -> None:
    for size in (20, 24):
        folder = tmp_path / "files" / f"class{size}"
        folder.mkdir(parents=True)
        Image.new("RGB", (size, size)).save(folder / "one.png")
    request = replace(request_of(parts), images=tmp_path / "files", target="1")
    make_record(replace(request, input_shape=(3, 16, 16)), tmp_path / "given")
    assert open_record(tmp_path / "given").input_shape == (3, 16, 16)
    make_record(request, tmp_path / "guessed")
    assert open_record(tmp_path / "guessed").input_shape == (3, 32, 32)


def test_listing_tells_records_with_a_lost_part(tmp_path: Path, parts: OwnParts) -> None:
    make_record(request_of(parts), tmp_path / "runs" / "a")
    make_record(request_of(parts), tmp_path / "runs" / "b")
    (tmp_path / "runs" / "b" / "parts.json").write_text("{")
    found = list(PartsAdapter().records(tmp_path / "runs"))
    assert [(listing.path.name, listing.complete) for listing in found] == [("a", True), ("b", False)]
    assert found[0].summary == "patch (target 2), images, network.py:Reader"
    assert "parts.json is not JSON" in found[1].summary
    parts.checkpoint.unlink()
    assert "missing" in next(iter(PartsAdapter().records(tmp_path / "runs"))).summary


def test_a_whole_pickled_network_needs_trust(tmp_path: Path, parts: OwnParts) -> None:
    whole = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, CLASSES))
    torch.save(whole, tmp_path / "whole.pt")
    request = replace(request_of(parts), checkpoint=tmp_path / "whole.pt", arch=None)
    with pytest.raises(CheckpointError, match="--trust"):
        make_record(request, tmp_path / "record")
    make_record(replace(request, trust=True), tmp_path / "record")
    with pytest.raises(CheckpointError, match="--trust"):
        open_record(tmp_path / "record")
    assert isinstance(open_record(tmp_path / "record", trust=True).model, torch.nn.Sequential)
