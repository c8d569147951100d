"""``bench scan`` on the folder of a record."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import refused


def test_scan_of_a_record_refuses_what_only_checkpoints_have(tmp_path: Path) -> None:
    for given in (("--key", "model"), ("--arch-option", "width=8"), ("--num-classes", "3"), ("--strict",)):
        assert f"{given[0]} has no meaning for a record" in refused("scan", tmp_path, *given)


@pytest.mark.parametrize("name", ["model.safetensors", "images.safetensors"])
def test_repair_of_a_record_never_replaces_its_own_files(record: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).hardlink_to(record / name)
    before = (record / name).read_bytes()
    for place in (record / name, tmp_path / name):
        assert "an input of this run" in refused("scan", record, "--repair", place)
        assert (record / name).read_bytes() == place.read_bytes() == before
