"""Who may import whom, and habits that no module has; read from the source, nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"clp_plugin": "clp_plugin", "adapters": "clp_plugin.adapters", "reports": "clp_plugin.reports"}

pytestmark = pytest.mark.skipif(not (ROOT / "adapters").is_dir(), reason="needs the checkout")

# Inside the core, everything that draws or reads results must stay importable without torch.
FOR_REPORTS = {"text", "types", "selection", "errors", "store", "files", "reports"}
FOR_ADAPTERS = {
    "text",
    "types",
    "errors",
    "images",
    "config",
    "registry",
    "records",
    "files",
    "networks",
    "store",
    "adapters",
}
# Programs of the process in which a toolbox's scripts run: they exist to change that process.
CHILD = {
    "clp_plugin.adapters.driving.attempts",
    "clp_plugin.adapters.driving.program",
    "clp_plugin.adapters.backdoorbench.launcher",
    "clp_plugin.adapters.backdoorbench.bridges",
    "clp_plugin.adapters.backdoor_toolbox.launcher",
    "clp_plugin.adapters.backdoorbox.launcher",
    "clp_plugin.adapters.trojanzoo.launcher",
}
ENDPOINTS = {"cli"}  # the only room that talks to people, adapters and reports
# Each room may use those of the lines above it, and none below: the floors of the house.
FLOORS = (
    {"errors", "text", "types", "imports", "files"},
    {"config", "images", "registry", "networks"},
    {"records", "fusion", "selection"},
    {"scoring", "masking", "store"},
    {"evaluation", "evidence", "surrogate"},
    {"defenses"},
    {"bench"},
    {"cli"},
)
LIGHT = {
    "cli.app",
    "cli.grid_request",
    "cli.leaderboard",
    "cli.options",
    "cli.requests",
    "files.option_values",
    "cli.toolbox",
    "cli.console",
    "config",
    "errors",
    "registry",
    "records.opening",
    "records.adapter",
    "records.exchange",
    "store.layout",
    "store.outcomes",
    "text",
    "types",
    "files.atomic",
    "files.locks",
    "files.places",
    "imports",
    "cli.commands.listing",
}
HEAVY = {"torch", "torchvision", "timm", "pandas", "matplotlib", "sklearn", "scipy", "safetensors"}


def modules() -> dict[str, Path]:
    """Dotted name to file, as installed."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def statements(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"), feature_version=(3, 10))


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_run_time(node)


def imported(name: str, *, top_level: bool = False) -> set[str]:
    """Absolute names of the modules that a module imports when it runs; only those at import if ``top_level``."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    tree = statements(name)
    nodes = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))] if top_level else at_run_time(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*home, *([node.module] if node.module else [])])
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES}
    return found


def parts_of_core(name: str) -> set[str]:
    """First component after ``clp_plugin`` of everything of ours that a module imports."""
    ours = (item for item in imported(name) if item == "clp_plugin" or item.startswith("clp_plugin."))
    return {item.split(".")[1] if "." in item else "" for item in ours} - {""}


def core() -> list[str]:
    return [n for n in MODULES if not n.startswith(("clp_plugin.adapters", "clp_plugin.reports"))]


def test_the_reader_of_imports_sees_what_is_there() -> None:
    assert "clp_plugin.records.adapter" in imported("clp_plugin.adapters.builtin.record")  # a relative import
    assert "torch" in imported("clp_plugin.images")  # inside a function
    assert "torch" not in imported("clp_plugin.types")  # under TYPE_CHECKING
    assert "clp_plugin.fusion.layers" in imported("clp_plugin.defenses.clp")
    assert len(MODULES) > 60


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("clp_plugin.reports")])
def test_reports_know_results_only_and_no_torch(name: str) -> None:
    assert parts_of_core(name) <= FOR_REPORTS
    assert not {item.split(".")[0] for item in imported(name)} & {"torch", "torchvision", "timm"}


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("clp_plugin.adapters")])
def test_adapters_know_the_types_of_the_core_and_no_defense(name: str) -> None:
    # What a toolbox runs in its own process is a command of ours, at home with the facts of that toolbox; an attacker who
    # knows a defense is written against its steps.
    allowed = FOR_ADAPTERS | ({"fusion", "selection", "surrogate"} if ".evasions." in name else set())
    allowed |= ENDPOINTS | {"bench", "defenses"} if name.endswith(".plugin_script") else set()
    assert parts_of_core(name) <= allowed


@pytest.mark.parametrize("name", core())
def test_core_resolves_adapters_and_reports_by_name_only(name: str) -> None:
    if name.removeprefix("clp_plugin.").partition(".")[0] not in ENDPOINTS:
        assert not parts_of_core(name) & {"adapters", "reports"}
        assert not parts_of_core(name) & ENDPOINTS or name == "clp_plugin.__main__"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("clp_plugin.cli.")])
def test_commands_know_toolboxes_by_their_capabilities_only(name: str) -> None:
    known = {item for item in imported(name) if item.startswith("clp_plugin.adapters.")}
    # `bench record` makes records of one kind, from parts that its options name.
    assert not [item for item in known if not item.startswith("clp_plugin.adapters.parts")]


def floor_of(room: str) -> int:
    """The floor that a room stands on, counted from the ground."""
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


@pytest.mark.parametrize("name", [n for n in core() if n not in ("clp_plugin", "clp_plugin.__main__")])
def test_no_room_leans_on_one_above_it(name: str) -> None:
    room = name.split(".")[1]
    rooms = parts_of_core(name) - {"adapters", "reports", "_root", room}
    assert not [other for other in rooms if floor_of(other) > floor_of(room)]


def test_no_two_rooms_of_the_core_need_each_other() -> None:
    needs: dict[str, set[str]] = {}
    for name in core():
        if name.count("."):
            room = name.split(".")[1]
            needs.setdefault(room, set()).update(parts_of_core(name) - {room})
    assert not [(one, other) for one, others in needs.items() for other in others if one in needs.get(other, ())]


def test_data_flows_one_way() -> None:
    """Scores know no mask and no data, selection and store know no tensors, evaluation knows no defense."""
    measured = {"evaluation", "evidence", "records", "bench", "defenses", "store"}
    for name in core():
        room = name.split(".")[1] if name.count(".") else ""
        known = parts_of_core(name)
        if room in ("fusion", "scoring"):
            assert not known & (measured | {"selection", "masking"}), name
        if room == "masking":
            assert not known & (measured | {"scoring", "selection"}), name
        if room == "evaluation":
            assert not known & {"defenses", "bench"}, name
    assert parts_of_core("clp_plugin.selection.outliers") <= {"errors", "types", "selection"}
    assert not parts_of_core("clp_plugin.defenses.clp") & {"records", "evaluation", "evidence", "bench", "store"}
    for name in ("selection.outliers", "store.outcomes", "evidence.correlation"):
        assert "torch" not in imported(f"clp_plugin.{name}"), name


@pytest.mark.parametrize("name", sorted(f"clp_plugin.{part}" for part in LIGHT))
def test_modules_that_help_needs_import_nothing_heavy_at_the_top(name: str) -> None:
    assert not {item.split(".")[0] for item in imported(name, top_level=True)} & HEAVY


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_prints_edits_the_path_or_seeds_everything(name: str) -> None:
    tree = statements(name)
    found = set(calls(tree))
    assert "print" not in found
    if name in CHILD:
        return
    if name not in ("clp_plugin.cli.console",):
        assert not found & {"sys.stdout.write", "sys.stderr.write"}
    assert not found & {"os.chdir", "torch.manual_seed", "np.random.seed", "random.seed", "torch.cuda.manual_seed_all"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) == "sys.path"]
    assert "CUDA_VISIBLE_DEVICES" not in MODULES[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_no_bare_except_no_star_import_no_assert_no_mutable_default(name: str) -> None:
    for node in ast.walk(statements(name)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            silent = all(isinstance(step, ast.Pass) for step in node.body)
            assert not (silent and ast.unparse(node.type) in ("Exception", "BaseException")), node.lineno
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}: users run with -O too"
        if isinstance(node, ast.ImportFrom):
            assert node.names[0].name != "*"
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
            assert not [d for d in defaults if isinstance(d, (ast.List, ast.Dict, ast.Set))], node.lineno


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_short(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 450, "split this module"
    for node in ast.walk(statements(name)):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None and isinstance(node.body[0], ast.Expr)
            start = (node.body[0].end_lineno or 0) + 1 if documented else node.body[0].lineno
            assert (node.end_lineno or 0) - start < 60, f"{node.name} is too long"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_public_class_or_function_says_what_it_is(name: str) -> None:
    tree = statements(name)
    assert ast.get_docstring(tree) is not None
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) is not None, node.name


@pytest.mark.parametrize("name", MODULES)
def test_an_entry_of_a_docstring_says_what_the_thing_is_and_not_only_of_what(name: str) -> None:
    fragment = re.compile(
        r"^ *[\w*]+: (?:Of|Likewise|Its|Whose|As|Ditto)\b.*|\A(?:Of|Likewise|Its|Whose)\b.*", re.MULTILINE
    )
    for node in ast.walk(statements(name)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found = fragment.search(ast.get_docstring(node) or "")
            assert not found, f"write the thing itself, such as 'Seed of the draw.': {found and found[0].strip()}"


def test_nobody_imports_the_folders_by_their_bare_names() -> None:
    bare = re.compile(r"^\s*(?:from|import) (?:adapters|reports)\b", re.MULTILINE)
    for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]:
        assert not bare.search(path.read_text(encoding="utf-8")), path.name


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    private = re.compile(r"/(?:home|root|work|Users)/\w|\.\./shared")
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py"), ROOT / "registry.yaml", ROOT / "pyproject.toml"]
    files += [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    for path in files:
        if path.name != Path(__file__).name:
            assert not private.search(path.read_text(encoding="utf-8")), path.name
