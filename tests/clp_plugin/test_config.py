"""The user's configuration file: found, validated, written without losing anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from interruptions import fork, needs_fork, wait

from clp_plugin.config import Settings, config_file, data_folder, load_settings, remember_toolbox
from clp_plugin.errors import ConfigError


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "Einstellungen für mich" / "config.yaml"
    monkeypatch.setenv("CLP_PLUGIN_CONFIG", str(path))
    return path


def test_without_a_file_the_defaults_hold() -> None:
    assert load_settings() == Settings()


def test_remembered_toolboxes_are_found_again_beside_each_other(own_config: Path, tmp_path: Path) -> None:
    assert remember_toolbox("backdoorbench", tmp_path / "a ä") == own_config
    remember_toolbox("other", tmp_path / "b")
    remember_toolbox("other", tmp_path / "c")
    found = load_settings().toolboxes
    assert {name: settings.root for name, settings in found.items()} == {
        "backdoorbench": tmp_path / "a ä",
        "other": tmp_path / "c",
    }
    assert "ä" in own_config.read_text(encoding="utf-8")


@needs_fork
def test_toolboxes_remembered_at_the_same_time_are_all_remembered(tmp_path: Path) -> None:
    children = [fork(lambda name=name: remember_toolbox(name, tmp_path / name)) for name in "abcdef"]
    assert [wait(child) for child in children] == [0] * 6
    assert sorted(load_settings().toolboxes) == list("abcdef")


def test_an_empty_file_is_as_good_as_none(own_config: Path) -> None:
    own_config.parent.mkdir()
    own_config.write_text("", encoding="utf-8")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("toolboxes: {backdoorbench: {root: [1]}}", "toolboxes.backdoorbench.root"),
        ("toolboxes: {backdoorbench: {rot: x}}", "toolboxes.backdoorbench"),
        ("colour: red", "colour"),
        ("toolboxes: [", "config.yaml"),
        ("!!python/object/apply:os.system ['true']", "python/object"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(own_config: Path, text: str, named: str) -> None:
    own_config.parent.mkdir()
    own_config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml") as raised:
        load_settings()
    assert named in str(raised.value)


def test_the_places_are_the_systems_unless_said_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLP_PLUGIN_CONFIG")
    monkeypatch.delenv("CLP_PLUGIN_DATA", raising=False)
    assert config_file().parts[-2:] == ("clp-plugin", "config.yaml")
    assert data_folder().name == "clp-plugin"
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(tmp_path))
    assert data_folder() == tmp_path
