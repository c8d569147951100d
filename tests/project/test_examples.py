"""Every public name shows how it is used, in an example that runs as it stands."""

from __future__ import annotations

import doctest

import pytest

import clp_plugin


@pytest.mark.parametrize("name", clp_plugin.__all__)
def test_the_example_of_a_public_name_runs(name: str) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(clp_plugin, name), name, globs={})
    examples = [test for test in found if test.examples]
    assert examples, f"{name} has no example"
    told: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert not told, "".join(told)
