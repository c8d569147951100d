"""The catalogue: what ships, what third parties and users add, and what goes wrong."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clp_plugin.bench.run import make_defense
from clp_plugin.errors import RegistryError
from clp_plugin.registry import Catalogue, load_catalogue, packaged_registry

OURS = ["clp", "ft", "fp", "nad", "anp", "rnp", "bnp", "ep", "dhbe", "surrogate_pruning"]


@pytest.fixture(autouse=True)
def no_installed_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tester has installed stays out."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints())


def registry_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def install(monkeypatch: pytest.MonkeyPatch, site: Path, entry_points: str, code: str) -> None:
    """A distribution as pip would leave it in a site-packages folder."""
    info = site / "shield-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shield\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)
    (site / "shield_plugin_under_test.py").write_text(code)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "shield_plugin_under_test", raising=False)


def test_what_ships_is_listed_with_its_facts() -> None:
    catalogue = load_catalogue()
    assert catalogue.names("toolboxes") == [
        "builtin", "parts", "backdoorbench", "backdoorbox", "backdoor_toolbox", "trojanzoo",
    ]  # fmt: skip
    assert catalogue.names("defenses") == OURS
    assert catalogue.names("attacks") == ["badnets", "blended", "trojan", "cla", "sig", "wanet", "iab", "ssba"]
    clp = catalogue.entry("defenses", "clp")
    assert (clp.budget, clp.origin) == ("none", "clp_plugin")
    assert "2208.03111" in clp.citation


@pytest.mark.parametrize(
    ("dataset", "u"), [("cifar10", 3), ("CIFAR-10", 3), ("tiny", 5), ("Tiny ImageNet", 5), ("svhn", 3), ("", 3)]
)
def test_threshold_of_clp_follows_the_dataset(dataset: str, u: float) -> None:
    assert make_defense(load_catalogue(), "clp", dataset, {})[1]["u"] == u


def test_every_shipped_object_can_be_imported() -> None:
    catalogue = load_catalogue()
    for kind in catalogue.sections:
        for name in catalogue.names(kind):
            assert isinstance(catalogue.resolve(kind, name), type), f"{kind}.{name}"


def test_packaged_registry_is_the_checkouts_or_the_wheels() -> None:
    path = packaged_registry()
    assert path.name == "registry.yaml"
    assert set(yaml.safe_load(path.read_text())) == {"toolboxes", "defenses", "attacks"}


def test_unknown_names_answer_with_the_known_ones() -> None:
    catalogue = load_catalogue()
    with pytest.raises(
        RegistryError,
        match=r"unknown defense 'clq'; known: anp, bnp, clp, dhbe, ep, fp, ft, nad, rnp, surrogate_pruning$",
    ):
        catalogue.entry("defenses", "clq")
    with pytest.raises(
        RegistryError, match=r"unknown attack 'lira'; known: badnets, blended, cla, iab, sig, ssba, trojan, wanet$"
    ):
        catalogue.resolve("attacks", "lira")
    with pytest.raises(RegistryError, match=r"unknown section 'models'; known: attacks, defenses, toolboxes$"):
        catalogue.names("models")  # type: ignore[arg-type]


def test_users_file_adds_a_defense_from_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("class Outer:\n    class Mine: answer = 42\n")
    path = registry_file(tmp_path, "defenses: {mine: {object: 'own.py:Outer.Mine', summary: my own}}")
    monkeypatch.chdir("/")
    before = list(sys.path)
    catalogue = load_catalogue(path)
    assert catalogue.names("defenses") == [*OURS, "mine"]
    assert catalogue.entry("defenses", "mine").origin == str(path)
    assert catalogue.resolve("defenses", "mine").answer == 42  # type: ignore[attr-defined]
    assert sys.path == before


def test_users_file_may_name_an_importable_module(tmp_path: Path) -> None:
    path = registry_file(tmp_path, "toolboxes: {t: {object: 'collections:OrderedDict', summary: s}}")
    assert load_catalogue(path).resolve("toolboxes", "t").__name__ == "OrderedDict"  # type: ignore[attr-defined]


def test_two_providers_of_one_name_are_both_named(tmp_path: Path) -> None:
    path = registry_file(tmp_path, "defenses: {clp: {object: 'a:B', summary: s}}")
    with pytest.raises(
        RegistryError,
        match=r"two providers of the defense 'clp': clp_plugin\.defenses\.clp:CLP from .* a:B from .*mine",
    ):
        load_catalogue(path)


def test_replaces_takes_the_place_on_purpose(tmp_path: Path) -> None:
    path = registry_file(tmp_path, "defenses: {clp: {object: 'a:B', summary: s, replaces: clp}}")
    catalogue = load_catalogue(path)
    assert catalogue.entry("defenses", "clp").object == "a:B"
    path = registry_file(tmp_path, "defenses: {clq: {object: 'a:B', summary: s, replaces: clp}}")
    with pytest.raises(RegistryError, match=r"replaces: 'clp' must be the entry's own name, 'clq'"):
        load_catalogue(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {}", r"unknown section 'models'; known: attacks, defenses, toolboxes$"),
        (
            "defenses: {x: {object: 'a:b', summary: s, budgit: none}}",
            r"unknown key 'budgit'; known: budget, .*summary$",
        ),
        ("defenses: {x: {object: 'a:b', summary: s, origin: me, extra: 1}}", r"unknown key 'extra'"),
        ("defenses: {x: {object: 'a:b'}}", r"defenses\.x in .*mine\.yaml: summary: Field required"),
        ("defenses: {x: {object: 'a.b', summary: s}}", r"object: String should match pattern .*found 'a\.b'"),
        (
            "defenses: {x: {object: 'a:b', summary: s, budget: all}}",
            r"budget: .*'none', 'benign' or 'poisoned', found 'all'",
        ),
        ("defenses: {x: {object: 'a:b', summary: s, defaults: [1]}}", r"defaults: .*dictionary, found \[1\]"),
        ("defenses: [clp]", r"defenses in .*mine\.yaml: expected names with their values, found \['clp'\]"),
        ("defenses: {x: y}", r"defenses\.x in .*: expected names with their values, found 'y'"),
        ("text", r"expected names with their values, found 'text'"),
        ("a: [", r"mine\.yaml is not valid YAML: .*line 1"),
        ("a: 1\na: 2", r"not valid YAML: 'a' stands here twice .*line 2"),
        ("a: !!python/object/apply:os.mkdir [/tmp/never]", r"not valid YAML: could not determine a constructor"),
    ],
)
def test_errors_in_a_file_say_where_and_what_is_known(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        load_catalogue(registry_file(tmp_path, text))


def test_missing_file_says_so_and_empty_file_adds_nothing(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"cannot read .*absent\.yaml: No such file"):
        load_catalogue(tmp_path / "absent.yaml")
    assert load_catalogue(registry_file(tmp_path, "defenses:\n")) == load_catalogue()


def test_object_that_cannot_be_imported_fails_only_when_used(tmp_path: Path) -> None:
    text = "defenses: {gone: {object: 'no_such_package_here:X', summary: s}, lacks: {object: 'json:X', summary: s}}"
    catalogue = load_catalogue(registry_file(tmp_path, text))
    assert catalogue.names("defenses") == [*OURS, "gone", "lacks"]
    with pytest.raises(RegistryError, match=r"'gone' \(no_such_package_here:X, from .*mine\.yaml\) cannot be imported"):
        catalogue.resolve("defenses", "gone")
    with pytest.raises(RegistryError, match=r"'lacks' .*AttributeError"):
        catalogue.resolve("defenses", "lacks")


def test_installed_distribution_adds_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "class Shield:\n    '''Shields.\n\n    More.'''\n    budget = 'benign'\n    defaults = {'n': 5}\n"
        "class Box:\n    summary = 'a toolbox'\n"
    )
    points = (
        "[clp_plugin.defenses]\nshield = shield_plugin_under_test:Shield\nbroken = shield_plugin_under_test:Absent\n"
        "[clp_plugin.toolboxes]\nbox = shield_plugin_under_test:Box\n"
    )
    install(monkeypatch, tmp_path, points, code)
    catalogue = load_catalogue()
    shield = catalogue.entry("defenses", "shield")
    assert (shield.summary, shield.budget, shield.defaults, shield.origin) == (
        "Shields.",
        "benign",
        {"n": 5},
        "shield 1.2",
    )
    assert catalogue.entry("toolboxes", "box").summary == "a toolbox"
    assert catalogue.resolve("defenses", "shield").__name__ == "Shield"  # type: ignore[attr-defined]
    assert catalogue.entry("defenses", "broken").summary.startswith("cannot be imported: AttributeError")
    with pytest.raises(RegistryError, match=r"'broken' .*from shield 1\.2\) cannot be imported"):
        catalogue.resolve("defenses", "broken")


def test_installed_distribution_that_claims_a_shipped_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[clp_plugin.attacks]\nbadnets = shield_plugin_under_test:Mine\n"
    install(monkeypatch, tmp_path, points, "class Mine:\n    summary = 's'\n")
    with pytest.raises(
        RegistryError, match=r"two providers of the attack 'badnets': .*from clp_plugin and .*shield 1\.2"
    ):
        load_catalogue()


def test_catalogue_of_nothing_lists_none() -> None:
    with pytest.raises(RegistryError, match=r"unknown defense 'clp'; known: none"):
        Catalogue({"toolboxes": {}, "defenses": {}, "attacks": {}}).entry("defenses", "clp")


@pytest.mark.parametrize(
    "module",
    [
        "registry",
        "errors",
        "types",
        "files.checkpoints",
        "files.reading",
        "networks.architectures",
        "store.outcomes",
        "records.opening",
    ],
)
def test_light_modules_import_no_heavy_package(module: str) -> None:
    code = (
        f"import sys, clp_plugin.{module}\n"
        "print([m for m in ('torch', 'torchvision', 'pandas', 'matplotlib', 'sklearn', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_grid_without_methods_leaves_out_what_is_opt_in(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(
        "defenses: {mine: {object: 'x:y', summary: mine, opt_in: true}, other: {object: 'x:y', summary: other}}"
    )
    assert load_catalogue(own).usual_defenses() == [*(name for name in OURS if name != "surrogate_pruning"), "other"]
