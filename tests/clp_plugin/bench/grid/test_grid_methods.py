"""What the name of a method in a grid stands for."""

from __future__ import annotations

import pytest

from clp_plugin.bench.grid.methods import Method, parse_method
from clp_plugin.errors import ClpError
from clp_plugin.registry import load_catalogue


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("clp", Method("clp")),
        ("clp:u=2:layers=fused,diagonal", Method("clp", options={"u": 2, "layers": "fused,diagonal"})),
        ("backdoorbench:anp", Method("anp", "backdoorbench")),
        ("backdoorbench:anp:epochs=5", Method("anp", "backdoorbench", {"epochs": 5})),
    ],
)
def test_a_name_is_read_and_written_the_same_way(text: str, method: Method) -> None:
    assert parse_method(text, load_catalogue()) == method
    assert str(method) == text


@pytest.mark.parametrize(
    "text", ["", ":", "clp:", "u=2", "a:b:c", "clp:=2", "clp:u=1:u=2", "clp:u=[", "cpl", "nobody:clp"]
)
def test_what_is_no_method_is_refused(text: str) -> None:
    with pytest.raises(ClpError):
        parse_method(text, load_catalogue())


def test_a_toolboxs_own_method_runs_on_its_own_records_only() -> None:
    assert Method("clp").runs_on("builtin")
    assert Method("anp", "backdoorbench").runs_on("backdoorbench")
    assert not Method("anp", "backdoorbench").runs_on("builtin")
