"""The folders of the tests bear the names of the packages that they test, and must not stand in for them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.iterdir() if path.is_dir()))
def test_no_bare_import_is_answered_by_a_folder_of_tests(name: str) -> None:
    found = find_spec(name)
    places = found.submodule_search_locations if found else None
    assert not [place for place in places or () if TESTS in Path(place).resolve().parents]


def test_files_of_tests_have_names_of_their_own() -> None:
    # Without __init__.py, of two files of one name pytest imports the first only.
    names = [path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
    assert not list(TESTS.rglob("__init__.py"))
