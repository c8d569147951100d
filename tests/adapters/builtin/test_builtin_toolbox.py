"""The built-in bench behind the port: what it takes, what it refuses beforehand, and what stands at a place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_records  # noqa: F401 - one thread
import pytest

from clp_plugin.adapters.builtin import toolbox
from clp_plugin.adapters.builtin.settings import PRESETS
from clp_plugin.adapters.builtin.toolbox import BuiltinBench
from clp_plugin.adapters.builtin.training.recipe import Recipe
from clp_plugin.errors import ConfigError, RegistryError
from clp_plugin.records.adapter import ChecksAttacks, RunsAttacks, RunsDefenses, require
from clp_plugin.records.exchange import RunRequest
from clp_plugin.records.opening import load_adapter
from clp_plugin.registry import load_catalogue

CATALOGUE = load_catalogue()
BENCH = BuiltinBench()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset, made tiny."""
    recipe = Recipe(epochs=1, lr=0.05, batch_size=32, precision="float32")
    network = {"width": 2, "blocks": (1, 1)}
    tiny = replace(PRESETS["small"], recipe=recipe, n_train=200, n_test=60, model_options=network)
    monkeypatch.setattr(toolbox, "PRESETS", {"small": tiny})


def asked(**given: object) -> RunRequest:
    options = BENCH.attack_options({"preset": "small", **given})
    return RunRequest(options, seed=3, reuse=True, catalogue=CATALOGUE)


def test_it_is_a_toolbox_that_reads_and_attacks_and_says_what_it_cannot_do() -> None:
    adapter = load_adapter(CATALOGUE, "builtin")
    assert isinstance(adapter, RunsAttacks)
    assert isinstance(adapter, ChecksAttacks)
    with pytest.raises(ConfigError, match=r"builtin: .* lacks run_defense, read_defense \(RunsDefenses\)"):
        require(adapter, RunsDefenses, toolbox="builtin")


def test_a_record_is_made_once_and_another_one_is_refused_in_its_place(tmp_path: Path) -> None:
    place, said = tmp_path / "a", list[str]()
    BENCH.check_attack(str(place), "badnets", asked())
    assert not place.exists(), "nothing is written beforehand"
    steps: list[tuple[int, int]] = []
    noted = replace(asked(), report=said.append, progress=lambda done, total: steps.append((done, total)))
    for _ in range(2):
        with BENCH.attacked(str(place), "badnets", noted) as path:
            assert path == place
    assert [line.split()[0] for line in said] == ["stored", "using"]
    assert steps[-1] == (100, 100)
    assert BENCH.sniff(place)
    BENCH.check_attack(str(place), "badnets", asked())
    for other in (asked(poison_rate=0.2), replace(asked(), seed=4)):
        with pytest.raises(ConfigError, match="a holds a record of other settings than preset 'small'"):
            BENCH.check_attack(str(place), "badnets", other)


def test_what_is_impossible_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting of an attack 'epoch'"):
        BENCH.attack_options({"epoch": 3})
    for method, given, error in (
        ("badnet", {}, "unknown attack 'badnet'"),
        ("badnets", {"preset": "tiny"}, "unknown preset 'tiny'"),
        ("badnets", {"recipe": "none"}, "unknown recipe 'none'"),
        ("badnets", {"target": "eleven"}, "expected a class number or `all`"),
    ):
        with pytest.raises((ConfigError, RegistryError), match=error):
            BENCH.check_attack(str(tmp_path / "a"), method, asked(**given))


def test_the_blocks_of_a_preset_are_not_those_of_another_network() -> None:
    def options(**given: object) -> dict[str, object]:
        return dict(toolbox.attack_settings("badnets", asked(**given)).model_options)

    assert options(width=4) == {"width": 4, "blocks": (1, 1)}
    assert options(model="resnet18", width=4) == {"width": 4, "blocks": (1, 1)}
    assert options(model="vgg11_bn", width=4) == {"width": 4}
    assert options(model="vgg11_bn") == {}
