"""The records in zoo/: small, without images, and pruned by CLP as the stored outcomes say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clp_plugin import Mask, fuse, score, select
from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.adapters.builtin.record_files import read_description, require_files
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.files.hashing import sha256

ZOO = Path(__file__).resolve().parents[2] / "zoo"
RECORDS = sorted(file.parent for file in ZOO.glob("*/record.json"))
pytestmark = pytest.mark.skipif(not RECORDS, reason="the zoo is not part of the wheel")


def stored_masks() -> dict[tuple[str, float], Mask]:
    """The masks of CLP by the hash of the network and u, as they were found on a GPU when the zoo was made."""
    outcomes = [json.loads(file.read_text()) for file in ZOO.glob("outcomes/cells/clp-*.json")]
    return {(found["provenance"]["sha256"], found["options"]["u"]): Mask.from_json(found["mask"]) for found in outcomes}


def test_the_zoo_is_small_and_holds_no_image() -> None:
    files = [file for file in ZOO.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25 * 2**20
    assert not [file for file in files if file.name == "images.safetensors" or file.suffix in (".png", ".jpg", ".npz")]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_clp_prunes_what_it_pruned_when_the_zoo_was_made(record: Path) -> None:
    require_files(record)
    description = read_description(record)
    assert sha256(record / "model.safetensors") == description.sha256
    name = description.architecture.removeprefix("builtin:")
    model = build(name, num_classes=10, **description.architecture_options)
    model.load_state_dict(dict(load_checkpoint(record / "model.safetensors")))
    scores = score(fuse(model.eval(), description.input_shape))
    masks = stored_masks()
    for u in (2, 3.0):
        assert select(scores, u).indices() == masks[description.sha256, u].indices()
