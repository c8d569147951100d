"""Six backdoored networks that strangers trained, by the commands of docs/published.md, against the numbers that it states.

The files are no part of this project: ``CLP_PLUGIN_PUBLISHED`` names their folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from command_line import bench

PAGE = Path(__file__).resolve().parents[3] / "docs" / "published.md"
FOLDER = os.environ.get("CLP_PLUGIN_PUBLISHED")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FOLDER is None, reason="CLP_PLUGIN_PUBLISHED does not name the folder of the published networks"
    ),
    pytest.mark.skipif(not PAGE.is_file(), reason="needs the checkout"),
]


def blocks(language: str) -> list[str]:
    """The code of that language on the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table whose first heading that is, by the first of each row."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"| {heading} |")[2].splitlines()[2:]
    table = [line.strip("|").split("|") for line in lines[: next(i for i, line in enumerate(lines) if not line)]]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in table}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files, the page's networks and its triggers."""
    place = tmp_path_factory.mktemp("published")
    for file in Path(str(FOLDER)).iterdir():
        (place / file.name).symlink_to(file.resolve())
    networks, pictures = blocks("python")
    (place / "networks.py").write_text(networks)
    (place / "pictures.py").write_text(pictures)
    return place


def commands() -> dict[str, list[str]]:
    """Record to the words of the command that makes it."""
    shell = blocks("sh")[0].replace("\\\n", " ")
    variables = dict(re.findall(r'^(\w+)="(.*)"$', shell, re.MULTILINE))
    lines = [line for line in shell.splitlines() if line.startswith("bench record")]
    for name, value in variables.items():
        lines = [line.replace(f"${name}", value) for line in lines]
    return {line.rpartition("/")[2]: line.split()[1:] for line in lines}


def percents(metrics: dict[str, float]) -> list[str]:
    return [f"{100 * metrics[key]:.2f}" for key in ("acc", "asr", "ra", "base_rate")]


def test_the_page_has_six_networks() -> None:
    assert len(commands()) == len(rows("record")) == 6


@pytest.mark.parametrize("name", ["badnets_8", "trojan_sq_2", "trojan_wm_2", "l0_inv_0", "l2_inv_0", "grid_0"])
def test_a_published_network_does_what_the_page_says_before_and_after(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CLP_PLUGIN_DATA", str(place / "data"))
    exec(compile(Path("pictures.py").read_text(), "pictures.py", "exec"), {})
    before = bench(*commands()[name], "--json")
    assert percents(before.json) == rows("record")[name]
    after = bench("defend", "--record", f"runs/{name}", "--json").json
    assert [*percents(after["after"])[:3], str(after["pruned"])] == rows("record, u = 3")[name]
