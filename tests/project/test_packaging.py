"""What gets installed: every package, registry.yaml, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("clp_plugin", "adapters", "reports")

pytestmark = pytest.mark.skipif(not (ROOT / "adapters").is_dir(), reason="needs the checkout")


def pyproject(section: str) -> str:
    """The text of one table; Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^\[{re.escape(section)}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, section
    return found[1]


def test_every_package_directory_is_declared() -> None:
    declared = set(re.findall(r'"(clp_plugin[\w.]*)"', pyproject("tool.setuptools")))
    found = {
        ("" if top == "clp_plugin" else "clp_plugin.") + ".".join(init.parent.relative_to(ROOT).parts)
        for top in TOPS
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert declared - {"clp_plugin._root"} == found


def test_every_folder_with_code_is_a_package() -> None:
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path} would be missing in the wheel"


def test_no_module_lies_at_the_root() -> None:
    # clp_plugin._root is mapped to ".", so a conftest.py or setup.py there would be installed.
    assert [path.name for path in ROOT.glob("*.py")] == []


def test_command_and_python_versions_are_those_promised() -> None:
    assert 'bench = "clp_plugin.cli.app:main"' in pyproject("project.scripts")
    assert 'requires-python = ">=3.10"' in pyproject("project")


def test_every_import_of_ours_is_a_declared_dependency() -> None:
    distribution = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "torch_pruning": "torch-pruning",
        "trojanvision": "trojanzoo",
    }
    declared = {
        re.split(r"[<>=\[ ]", item)[0].lower() for item in re.findall(r'"([\w.-]+[^"]*)"', pyproject("project"))
    }
    optional = set(re.findall(r'"([\w-]+)', pyproject("project.optional-dependencies")))
    found = set()
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r"^\s*(?:from|import) ([A-Za-z_]\w*)", text, re.MULTILINE))
    ours = found - set(sys.stdlib_module_names) - {"clp_plugin"}
    names = {distribution.get(name, name) for name in ours if importable(name)}
    assert names - declared <= optional
    assert {"torch", "numpy", "typer"} <= names


def importable(name: str) -> bool:
    """Leaves out words of docstrings that look like imports."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no stale ``build`` folder of the checkout gets in and none is left there."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for top in TOPS:
        shutil.copytree(ROOT / top, source / top, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "registry.yaml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    (source / "tests" / "test_x.py").touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if "BackendUnavailable" in done.stderr or "No module named pip" in done.stderr:
        pytest.skip("needs pip and setuptools here")
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_all_of_clp_plugin_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"clp_plugin"}
    assert {"clp_plugin/_root/registry.yaml", "clp_plugin/py.typed"} <= set(names)
    assert [name for name in names if name.startswith("clp_plugin/_root/")] == ["clp_plugin/_root/registry.yaml"]
    expected = {
        ("" if top == "clp_plugin" else "clp_plugin/") + path.relative_to(ROOT).as_posix()
        for top in TOPS
        for path in (ROOT / top).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == expected
    metadata = next(name for name in names if name.endswith("dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in zipfile.ZipFile(wheel).read(metadata).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_installed_elsewhere_it_finds_its_registry_and_answers(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    assert sorted(p.name for p in site.iterdir() if not p.name.endswith(".dist-info")) == ["bin", "clp_plugin"]
    # A stranger's registry.yaml beside the package must not be taken for ours.
    (site / "registry.yaml").write_text("nonsense: 1\n")
    code = (
        "import sys, clp_plugin, clp_plugin.adapters.builtin.record, clp_plugin.reports.tables\n"
        "from clp_plugin.registry import packaged_registry\n"
        "from clp_plugin.cli.console import run\n"
        "from clp_plugin.cli.app import app\n"
        "print(clp_plugin.__file__, packaged_registry(), sep='\\n', flush=True)\n"
        "sys.exit(run(app, ['list', 'defenses', '--json']))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package, registry, listed = done.stdout.strip().splitlines()
    assert Path(package).parent == site / "clp_plugin"
    assert Path(registry) == site / "clp_plugin" / "_root" / "registry.yaml"
    assert '"clp"' in listed
    bare = "import importlib.util as u; print([n for n in ('adapters', 'reports', 'tests') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", bare], cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
